    resized: NDArray[np.int64] = spec.resize_px * source // source.min(axis=1, keepdims=True)
    return resized


