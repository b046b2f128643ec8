"""Canvases to network input: crop, antialiased resize and flip as two exact matrix products, then colour jitter.

Crop, resize and flip: row weights x image x column weights. The weights are integers that sum to 2**11, so every sum of a
product stays below 2**24 and is exact in float32 and in TF32, in any order; each pass is rounded to uint8. A view's pixels
are therefore the same bits whatever the batch, device, kernel, compiler or processor.
The filter is the triangle of Pillow's and torchvision's antialiased bilinear resize.

Letters: B batch, S canvas side, O output side, K taps of the filter, N samples.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from udkd.words.views import BRIGHTNESS, CONTRAST, SUBPIXELS, Views, ViewSpec

VERSION = 1
"""Raise it whenever a pixel of a view, or its normalisation, changes: caches made with another version are refused."""

WEIGHT_BITS = 11
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_GREY = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
_GREY_STEPS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ViewTable:
    """Views as tensors on one device; the fields are those of udkd.words.views.Views."""

    window: Tensor
    bounds: Tensor
    flip: Tensor
    kind: Tensor
    factor: Tensor

    @classmethod
    def of(cls, views: Views, device: torch.device | str = "cpu") -> "ViewTable":
        """Copy drawn views to a device."""
        return cls(**{f.name: torch.from_numpy(getattr(views, f.name)).to(device) for f in fields(cls)})

    def gather(self, rows: Tensor) -> "ViewTable":
        """The views of some rows, int64 [B] on the table's device."""
        return ViewTable(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def apply(canvas_BSS3: Tensor, views: ViewTable, spec: ViewSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    """Canvases uint8 [B, S, S, 3] to normalised input [B, 3, O, O], channels_last, of `dtype`; O is spec.size_px."""
    return finish(pixels(canvas_BSS3, views, spec.size_px), views, jitter=spec.jitters, dtype=dtype)


def pixels(canvas_BSS3: Tensor, views: ViewTable, size_px: int) -> Tensor:
    """The view itself: uint8 [B, O, O, 3], equal bit for bit wherever it is computed.

    Within 1 of 255 of torchvision's resized_crop(antialias=True) on uint8 images (random_resized); the schemes that resize
    first are within 2 of its resize and center_crop, beyond 1 in under 1e-4 of the values.
    """
    side = canvas_BSS3.shape[1]
    rows_BOS = _weights(views.window[:, 0], views.window[:, 2], views.bounds[:, 0], views.bounds[:, 2], size_px, side)
    columns_BOS = _weights(views.window[:, 1], views.window[:, 3], views.bounds[:, 1], views.bounds[:, 3], size_px, side)
    columns_BOS = torch.where(views.flip[:, None, None], columns_BOS.flip(1), columns_BOS)
    # Autocast would turn these products into bfloat16, whose 8 bits cannot hold the weights.
    with torch.autocast(canvas_BSS3.device.type, enabled=False):
        if canvas_BSS3.device.type == "cpu":
            return _products_cut(canvas_BSS3, rows_BOS, columns_BOS, views.bounds)
        return _products(canvas_BSS3, rows_BOS, columns_BOS)


def finish(pixels_BOO3: Tensor, views: ViewTable, *, jitter: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """Colour jitter (where `jitter`) and normalisation: uint8 [B, O, O, 3] -> [B, 3, O, O], channels_last, of `dtype`."""
    x_BOO3 = pixels_BOO3.float() / 255
    if jitter:
        for turn in range(views.kind.shape[1]):
            x_BOO3 = _jittered(x_BOO3, views.kind[:, turn], views.factor[:, turn])
    mean, std = _constant(MEAN, x_BOO3.device), _constant(STD, x_BOO3.device)
    return ((x_BOO3 - mean) / std).to(dtype).permute(0, 3, 1, 2)


def taps(start: Tensor, length: Tensor, low: Tensor, high: Tensor, size_px: int, side: int) -> tuple[Tensor, Tensor]:
    """Filter taps of each output pixel: position int64 [B, O, K] and weight int64 [B, O, K] as numerators of their sum.

    start, length: the window along one axis, low, high: the pixels that may be read; int64 [B] in 1/SUBPIXELS canvas px.
    All is counted in units of 1 / (2 O SUBPIXELS) canvas px, in which every quantity below is an integer.
    """
    pixel = 2 * size_px * SUBPIXELS
    output = torch.arange(size_px, device=start.device)
    centre_BO = 2 * size_px * start[:, None] + (2 * output + 1) * length[:, None]
    reach_B1 = torch.clamp(2 * length, min=pixel)[:, None]
    first_BO = torch.div(centre_BO - reach_B1 - pixel // 2, pixel, rounding_mode="floor") + 1
    count = 2 * -(-max(side, size_px) // size_px) + 1
    position_BOK = first_BO[:, :, None] + torch.arange(count, device=start.device)
    weight_BOK = (reach_B1[:, :, None] - (position_BOK * pixel + pixel // 2 - centre_BO[:, :, None]).abs()).clamp(min=0)
    # A pixel may be read when any part of it lies within the bounds, so that a window thinner than a pixel still has one.
    inside = ((position_BOK + 1) * SUBPIXELS > low[:, None, None]) & (position_BOK * SUBPIXELS < high[:, None, None])
    return position_BOK, weight_BOK * inside


def _weights(start: Tensor, length: Tensor, low: Tensor, high: Tensor, size_px: int, side: int) -> Tensor:
    """Integer weights that sum to 2**WEIGHT_BITS, as float32 [B, O, S].

    Telescoping: each running sum is rounded, and the weights are the differences, so that the total is exact by construction.
    """
    position_BOK, weight_BOK = taps(start, length, low, high, size_px, side)
    running_BOK = weight_BOK.cumsum(-1)
    whole_BO1 = running_BOK[..., -1:]
    rounded_BOK = torch.div((running_BOK << (WEIGHT_BITS + 1)) + whole_BO1, 2 * whole_BO1, rounding_mode="floor")
    steps_BOK = torch.diff(rounded_BOK, dim=-1, prepend=torch.zeros_like(whole_BO1))
    dense_BOS = torch.zeros(*position_BOK.shape[:2], side, device=start.device)
    # Taps outside the canvas have weight 0; clamped, they add nothing.
    return dense_BOS.scatter_add_(-1, position_BOK.clamp(0, side - 1), steps_BOK.float())


def _rounded(sums: Tensor) -> Tensor:
    """Sums of weight x pixel to the nearest pixel value: exact in float32."""
    return torch.floor((sums + 2 ** (WEIGHT_BITS - 1)) * 2.0**-WEIGHT_BITS)


def _products(canvas_BSS3: Tensor, rows_BOS: Tensor, columns_BOS: Tensor) -> Tensor:
    """Both products over the whole batch, for processors that like big ones."""
    batch, side = canvas_BSS3.shape[:2]
    size = rows_BOS.shape[1]
    tall = _rounded(torch.bmm(rows_BOS, canvas_BSS3.float().reshape(batch, side, side * 3)))
    turned = tall.view(batch, size, side, 3).transpose(1, 2).reshape(batch, side, size * 3)
    done = _rounded(torch.bmm(columns_BOS, turned)).view(batch, size, size, 3)
    return done.transpose(1, 2).to(torch.uint8).contiguous()


def _products_cut(canvas_BSS3: Tensor, rows_BOS: Tensor, columns_BOS: Tensor, bounds: Tensor) -> Tensor:
    """The same products image by image with the unread part of the canvas cut away: a 512 px canvas costs 0.5 GFLOP else."""
    size = rows_BOS.shape[1]
    out_BOO3 = canvas_BSS3.new_empty(len(canvas_BSS3), size, size, 3)
    low, high = bounds[:, :2] // SUBPIXELS, -(-bounds[:, 2:] // SUBPIXELS)
    for n, (top, left, bottom, right) in enumerate(torch.cat([low, high], dim=1).tolist()):
        cut = canvas_BSS3[n, top:bottom, left:right].float()
        height, width = cut.shape[:2]
        tall = _rounded(rows_BOS[n, :, top:bottom] @ cut.reshape(height, width * 3)).view(size, width, 3)
        done = _rounded(columns_BOS[n, :, left:right] @ tall.transpose(0, 1).reshape(width, size * 3))
        out_BOO3[n] = done.view(size, size, 3).transpose(0, 1)
    return out_BOO3


def _jittered(x_BOO3: Tensor, kind_B: Tensor, factor_B: Tensor) -> Tensor:
    """One colour operation per sample, clamp(f x + (1 - f) y): torchvision's adjust_brightness, _contrast, _saturation.

    y is 0, the mean grey or the grey. The mean is summed in integers: a float sum would depend on its order.
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
    """float32 values written by the device itself: a copy from the host cannot be part of a CUDA graph."""
    return torch.stack([torch.full((), value, device=device) for value in values])
