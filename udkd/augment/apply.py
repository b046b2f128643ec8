"""Turns canvases into network input: crop, antialiased resize and flip as two exact weighted sums, then the colours.

Each row of a view is a weighted sum of a few rows of the canvas; then each column is a weighted sum of a few columns. The
filter is the triangle of Pillow's and torchvision's antialiased bilinear resize, or the cubic of their bicubic one. Weights
are integer multiples of 2**-11, and those of one output sum to 1; each pass is rounded to uint8. A view's pixels are therefore
the same bits whatever the batch, device, kernel, compiler, processor and settings of the process:

- The terms and partial sums of a sum, in any order, fused or not, are integer multiples of 2**-11 between 0 and 255. These are
  19 bits, and float32 holds 24 exactly. The same is true of the sums plus a half. Bicubic's negative weights add two bits.
- The sums are computed by embedding_bag, which multiplies and adds in float32, and deliberately not by a matrix product. On
  some processors PyTorch and its libraries compute products with fewer bits (set_float32_matmul_precision, fp32_precision,
  autocast, ONEDNN_DEFAULT_FPMATH_MODE), and bfloat16's 8 bits cannot hold a weight.
- No value is nearly denormal, and every dtype is explicit, so that the default dtype does not matter.

Letters: B batch, S canvas side, O output side, K taps of the filter, D values of a line of pixels, N samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from udkd.augment.mixing import MixedLabels
from udkd.augment.operations import OpSettings, apply_rows, change_rows, eager_on_cpu, erase, erase_boxes, mix
from udkd.augment.preprocessing import IMAGENET, Interpolation, NetworkInput, Preprocessing
from udkd.augment.views import BRIGHTNESS, CONTRAST, SUBPIXELS, Views, ViewSpec
from udkd.utils.cpu_threads import run_in_parts

VERSION = 1
"""Raise it whenever a pixel of a view, or its normalisation, changes: caches made with another version are refused."""

WEIGHT_BITS = 11
_PART_VALUES = 1 << 19  # of a part's pixels: with smaller parts several threads take as long as one
_CUBIC_BITS = 16  # of a distance in units of the filter's scale
_GREY = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
_GREY_STEPS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ViewTable:
    """Views as tensors on one device, with the fields of udkd.augment.views.Views.

    mate: int64 [B], the position of each sample's partner in the batch, where samples are mixed; see `gather` and `paired`.
    """

    window: Tensor
    bounds: Tensor
    flip: Tensor
    kind: Tensor
    factor: Tensor
    op: Tensor | None = None
    magnitude: Tensor | None = None
    erase_box: Tensor | None = None
    noise_key: Tensor | None = None
    partner: Tensor | None = None
    blend: Tensor | None = None
    mix_box: Tensor | None = None
    share: Tensor | None = None
    mate: Tensor | None = None

    @classmethod
    def of(cls, views: Views, device: torch.device | str = "cpu") -> "ViewTable":
        """Copy views to a device."""
        arrays = {field.name: getattr(views, field.name) for field in fields(views)}
        return cls(**{name: torch.from_numpy(array).to(device) for name, array in arrays.items() if array is not None})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The fields that are set, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def part(self, samples: slice) -> "ViewTable":
        """The views of some of the samples; their partners' positions remain those in the whole table."""
        return ViewTable(**{name: value[samples] for name, value in self.tensors.items()})

    def gather(self, rows: Tensor) -> "ViewTable":
        """The views at `rows`, int64 [B] on the table's device: sample ids, of a table of all ids."""
        views = ViewTable(**{name: value[rows] for name, value in self.tensors.items()})
        return views if self.partner is None else views.paired(rows)

    def paired(self, ids_B: Tensor) -> "ViewTable":
        """The views of the samples `ids_B` with the positions of their partners, which must be among them."""
        assert self.partner is not None, "views that mix samples"
        is_partner_BB = ids_B[None, :] == self.partner[:, None]
        # Without a partner a sample would be mixed with another one: stop, without making the host wait.
        torch._assert_async(is_partner_BB.any(1).all(), "a sample's partner is not in its batch")
        return replace(self, mate=is_partner_BB.int().argmax(1) if len(ids_B) else ids_B)  # nothing has no argmax

    def labels(self, labels_B: Tensor) -> "Tensor | MixedLabels":
        """The labels of the views of a batch: int64 [B] as given, or those of the mixed samples."""
        if self.mate is None or self.share is None:
            return labels_B
        return MixedLabels(own=labels_B, other=labels_B.index_select(0, self.mate), share=self.share)


def apply(
    canvas_BSS3: Tensor,
    views: ViewTable,
    spec: ViewSpec,
    preprocessing: Preprocessing = IMAGENET,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Turn canvases, uint8 [B, S, S, 3], into normalised input, `dtype` [B, 3, O, O], channels_last; O is spec.size_px."""
    network = NetworkInput(size_px=spec.size_px, preprocessing=preprocessing)
    return apply_each(canvas_BSS3, views, [network], spec, dtype=dtype)[0]


def apply_each(
    canvas_BSS3: Tensor,
    views: ViewTable,
    networks: Sequence[NetworkInput],
    spec: ViewSpec,
    *,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """`apply` for several networks: the same view in each network's size, interpolation and normalisation.

    spec: what the views were drawn from. What is equal for two networks is computed once.
    """
    return finish_each(pixels_each(canvas_BSS3, views, networks, spec), views, networks, spec, dtype=dtype)


def pixels_each(canvas_BSS3: Tensor, views: ViewTable, networks: Sequence[NetworkInput], spec: ViewSpec) -> list[Tensor]:
    """The uint8 pixels, [B, O, O, 3], for each size and interpolation in `networks`, in their order."""
    return [view_pixels(canvas_BSS3, views, spec, size_px, interpolation) for size_px, interpolation in _resizes(networks)]


def view_pixels(
    canvas_BSS3: Tensor, views: ViewTable, spec: ViewSpec, size_px: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """`pixels`, then operations, erasing and mixing: uint8 [B, O, O, 3], equal bit for bit wherever it is computed."""
    assert len(views.flip) == len(canvas_BSS3), f"{len(views.flip)} views of {len(canvas_BSS3)} canvases"
    op, magnitude, erase_box, noise_key = views.op, views.magnitude, views.erase_box, views.noise_key
    settings = OpSettings(bilinear=spec.warp == "bilinear", fill=spec.fill, blur_radius=spec.blur_radius)
    if eager_on_cpu(canvas_BSS3):

        def write(part: slice, x_B3OO: Tensor) -> None:
            x_B3OO.copy_(_resized(canvas_BSS3[part], views.part(part), size_px, interpolation).permute(0, 3, 1, 2))
            if op is not None and magnitude is not None:
                change_rows(x_B3OO, op[part], magnitude[part], settings)
            if erase_box is not None and noise_key is not None:
                erase_boxes(x_B3OO, erase_box[part], noise_key[part], spec.erase_fill)

        x_BOO3 = in_parts(write, len(canvas_BSS3), size_px)
    else:
        x_BOO3 = pixels(canvas_BSS3, views, size_px, interpolation)
        if op is not None and magnitude is not None:
            x_BOO3 = apply_rows(x_BOO3, op, magnitude, spec.row_ops, settings)
        if erase_box is not None and noise_key is not None:
            x_BOO3 = erase(x_BOO3, erase_box, noise_key, spec.erase_fill)
    if views.mate is not None and views.blend is not None and views.mix_box is not None:
        x_BOO3 = mix(x_BOO3, views.mate, views.blend, views.mix_box)
    return x_BOO3


def in_parts(write: Callable[[slice, Tensor], None], batch: int, size_px: int) -> Tensor:
    """Pixels on a CPU, uint8 [B, O, O, 3], of which `write` writes those of some samples, [., 3, O, O], in several threads."""
    done_B3OO = torch.empty(batch, 3, size_px, size_px, dtype=torch.uint8, device="cpu")
    run_in_parts(lambda part: write(part, done_B3OO[part]), batch, least=-(-_PART_VALUES // max(1, 3 * size_px * size_px)))
    return done_B3OO.permute(0, 2, 3, 1)


def finish_each(
    pixels_each_BOO3: Sequence[Tensor],
    views: ViewTable,
    networks: Sequence[NetworkInput],
    spec: ViewSpec,
    *,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """The input of each network from the result of `pixels_each`; a list item for each network."""
    jittered = {
        resize: jittered_floats(pixels_BOO3, views, jitter=spec.jitters_floats)
        for resize, pixels_BOO3 in zip(_resizes(networks), pixels_each_BOO3, strict=True)
    }
    inputs = {network: _normalised(jittered[_resize(network)], network.preprocessing, dtype) for network in networks}
    return [inputs[network] for network in networks]


def _resize(network: NetworkInput) -> tuple[int, Interpolation]:
    return network.size_px, network.preprocessing.interpolation


def _resizes(networks: Sequence[NetworkInput]) -> list[tuple[int, Interpolation]]:
    return list(dict.fromkeys(_resize(network) for network in networks))


def pixels(canvas_BSS3: Tensor, views: ViewTable, size_px: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Crop, resize and flip: uint8 [B, O, O, 3], equal bit for bit wherever it is computed; on a CPU a plane for each channel.

    The values are within 2 of 255 of torchvision's on uint8 images: of resized_crop(antialias=True) for random_resized, and of
    resize and center_crop for the other schemes, where under 1e-4 of the values differ by more than 1. Both libraries round
    after each pass, torchvision starting with the columns, so either may be 1 off the exact value, plus the error of its
    quantised weights. Here that is at most 255 / 4096 for each step between two taps, less than 1 in all for windows up to
    three times the view's side: for these the bound of 2 is proven. For smaller views it was found by search: among 30,000
    windows of five kinds of image, 7 had a value 2 off (1e-7 of the values, all enlarged), and none 3.
    Bicubic's bound was found by search alone: among 16,670 windows, 9e-5 of the values were 2 off, and none 3.
    """
    done_BOO3 = _resized(canvas_BSS3, views, size_px, interpolation)
    if eager_on_cpu(canvas_BSS3):
        return done_BOO3.permute(0, 3, 1, 2).to(torch.uint8, memory_format=torch.contiguous_format).permute(0, 2, 3, 1)
    return done_BOO3.to(torch.uint8, memory_format=torch.contiguous_format)


def _resized(canvas_BSS3: Tensor, views: ViewTable, size_px: int, interpolation: Interpolation) -> Tensor:
    """The result of `pixels`: float32 [B, O, O, 3]."""
    batch, side = canvas_BSS3.shape[:2]
    cubic = interpolation == "bicubic"
    window, bounds = views.window, views.bounds
    rows = _weights(window[:, 0], window[:, 2], bounds[:, 0], bounds[:, 2], size_px, side, cubic=cubic)
    columns = _weights(window[:, 1], window[:, 3], bounds[:, 1], bounds[:, 3], size_px, side, cubic=cubic)
    position_BOK, weight_BOK = (torch.where(views.flip[:, None, None], x_BOK.flip(1), x_BOK) for x_BOK in columns)
    if cubic:
        # Columns first, as Pillow and torchvision: the passes clamp overshoots, so their order matters by far more than 1.
        canvas_BSS3, first, second = canvas_BSS3.transpose(1, 2), (position_BOK, weight_BOK), rows
    else:
        first, second = rows, (position_BOK, weight_BOK)
    once_BOD = _sums(canvas_BSS3.float().reshape(batch, side, side * 3), *first, clamp=cubic)
    turned_BSD = once_BOD.view(batch, size_px, side, 3).transpose(1, 2).reshape(batch, side, size_px * 3)
    twice_BOO3 = _sums(turned_BSD, *second, clamp=cubic).view(batch, size_px, size_px, 3)
    return twice_BOO3 if cubic else twice_BOO3.transpose(1, 2)


def jittered_floats(pixels_BOO3: Tensor, views: ViewTable, *, jitter: bool) -> Tensor:
    """Pixels in [0, 1] after the colour jitter (if `jitter`): uint8 [B, O, O, 3] -> float32 [B, O, O, 3]."""
    x_BOO3 = pixels_BOO3.float() / 255
    if jitter:
        for step in range(views.kind.shape[1]):
            x_BOO3 = _jittered(x_BOO3, views.kind[:, step], views.factor[:, step])
    return x_BOO3


def _normalised(x_BOO3: Tensor, preprocessing: Preprocessing, dtype: torch.dtype) -> Tensor:
    mean, std = _constant(preprocessing.mean, x_BOO3.device), _constant(preprocessing.std, x_BOO3.device)
    x_B3OO = ((x_BOO3 - mean) / std).to(dtype).permute(0, 3, 1, 2)
    return x_B3OO.contiguous(memory_format=torch.channels_last)


def taps(
    start: Tensor, length: Tensor, low: Tensor, high: Tensor, size_px: int, side: int, *, cubic: bool = False
) -> tuple[Tensor, Tensor]:
    """Filter taps of each output pixel: positions int64 [B, O, K], and weights int64 [B, O, K] before division by their sum.

    start, length: the window along one axis; low, high: the area that may be read; int64 [B] in 1/SUBPIXELS canvas px.
    Lengths below are in units of 1 / (2 O SUBPIXELS) canvas px, which make all of them integers.
    """
    pixel = 2 * size_px * SUBPIXELS
    output = torch.arange(size_px, device=start.device)
    centre_BO = 2 * size_px * start[:, None] + (2 * output + 1) * length[:, None]
    reach_B1 = torch.clamp(2 * length, min=pixel)[:, None]
    support = 2 if cubic else 1
    first_BO = torch.div(centre_BO - support * reach_B1 - pixel // 2, pixel, rounding_mode="floor") + 1
    count = 2 * support * -(-max(side, size_px) // size_px) + 1
    position_BOK = first_BO[:, :, None] + torch.arange(count, device=start.device)
    distance_BOK = (position_BOK * pixel + pixel // 2 - centre_BO[:, :, None]).abs()
    reach_B11 = reach_B1[:, :, None]
    weight_BOK = _cubic(distance_BOK, reach_B11) if cubic else (reach_B11 - distance_BOK).clamp(min=0)
    # A pixel may be read when any part of it lies within the bounds, so that a window thinner than a pixel still has one.
    inside = ((position_BOK + 1) * SUBPIXELS > low[:, None, None]) & (position_BOK * SUBPIXELS < high[:, None, None])
    return position_BOK, weight_BOK * inside


def _cubic(distance: Tensor, scale: Tensor) -> Tensor:
    """Pillow's and torchvision's bicubic filter (Keys 1981, a = -1/2) at distance / scale, int64, in units of 2**-23.

    In integers, as a float's last bit may differ between devices. The rounding of the distance to 2**-16 and of the filter is
    far below that of the weights.
    """
    one = 1 << _CUBIC_BITS
    x = torch.div((distance << (_CUBIC_BITS + 1)) + scale, 2 * scale, rounding_mode="floor").clamp(max=2 * one)
    near = 2 * one**3 - 5 * one * x**2 + 3 * x**3
    far = 4 * one**3 - 8 * one**2 * x + 5 * one * x**2 - x**3
    # Twice the filter in units of one**3 = 2**48; far and near agree at 1.
    return (torch.where(x < one, near, far) + (1 << 25)) >> 26


def _weights(
    start: Tensor, length: Tensor, low: Tensor, high: Tensor, size_px: int, side: int, *, cubic: bool
) -> tuple[Tensor, Tensor]:
    """The pixels of each output pixel, int64 [B, O, K] within the canvas, and their weights, float32 [B, O, K].

    Weights are integer multiples of 2**-WEIGHT_BITS that sum to 1. Telescoping: each running sum is rounded, and the weights
    are the differences, so that the total is exact by construction.
    """
    position_BOK, weight_BOK = taps(start, length, low, high, size_px, side, cubic=cubic)
    running_BOK = weight_BOK.cumsum(-1)
    total_BO1 = running_BOK[..., -1:]
    rounded_BOK = torch.div((running_BOK << (WEIGHT_BITS + 1)) + total_BO1, 2 * total_BO1, rounding_mode="floor")
    steps_BOK = torch.diff(rounded_BOK, dim=-1, prepend=torch.zeros_like(total_BO1))
    # Taps outside the canvas have weight 0; clamped, they add nothing.
    return position_BOK.clamp(0, side - 1), steps_BOK.float() * 2.0**-WEIGHT_BITS


def _sums(lines_BSD: Tensor, position_BOK: Tensor, weight_BOK: Tensor, *, clamp: bool) -> Tensor:
    """Weighted sums of lines of pixels, rounded to pixel values: float32 [B, S, D] -> float32 [B, O, D].

    clamp: for negative weights, whose sums may leave [0, 255].
    """
    batch, side, values = lines_BSD.shape
    size, count = position_BOK.shape[1:]
    first_B = side * torch.arange(batch, device=lines_BSD.device)
    sums = F.embedding_bag(
        (position_BOK + first_B[:, None, None]).view(batch * size, count),
        lines_BSD.reshape(batch * side, values),
        per_sample_weights=weight_BOK.reshape(batch * size, count),
        mode="sum",
    )
    rounded = sums.add_(0.5).floor_()
    return (rounded.clamp_(0, 255) if clamp else rounded).view(batch, size, values)


def _jittered(x_BOO3: Tensor, kind_B: Tensor, factor_B: Tensor) -> Tensor:
    """One colour operation per sample, clamp(f x + (1 - f) y): torchvision's adjust_brightness, _contrast, _saturation.

    y is 0 for brightness, the mean grey for contrast and the grey for saturation. The mean is summed in integers, as a float
    sum would depend on its order.
    """
    grey_BOO1 = (x_BOO3 * _constant(_GREY, x_BOO3.device)).sum(-1, keepdim=True)
    steps = (grey_BOO1 * _GREY_STEPS).round().long().sum(dim=(1, 2, 3), keepdim=True)
    mean_B111 = (steps.double() / (_GREY_STEPS * grey_BOO1[0].numel())).float()
    kind_B111 = kind_B.view(-1, 1, 1, 1)
    other = torch.where(kind_B111 == CONTRAST, mean_B111, grey_BOO1)
    other = torch.where(kind_B111 == BRIGHTNESS, 0.0, other)
    factor_B111 = factor_B.view(-1, 1, 1, 1)
    return (factor_B111 * x_BOO3 + (1 - factor_B111) * other).clamp(0, 1)


def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A float32 tensor, filled on the device: a copy from pageable host memory cannot be captured in a CUDA graph."""
    return torch.stack([torch.full((), value, dtype=torch.float32, device=device) for value in values])
