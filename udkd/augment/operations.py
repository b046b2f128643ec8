"""Applies a view's operations, erasing and mixing to uint8 pixels, exactly: the same bits on every device and processor.

Every value is an integer, or a float32 that holds one exactly, so that no order of operations, fused multiply-add, thread count
or compiler can change a bit. Where a quotient is rounded down, the margin to the next integer is far above float32's error.
No product of matrices is used: its precision depends on settings of the process.

On a CPU each operation runs on the samples that have it. On a GPU, and in a compiled graph, every operation that a row can hold
runs on all samples, with a magnitude that changes nothing where the sample has another one: no shape depends on the data, and
the host waits for nothing. Both call the same functions.

Letters: B batch, O side of the view, R rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from udkd.augment.erasing import BOX_BITS, EraseFill
from udkd.augment.mixing import BLEND_BITS
from udkd.augment.policies import FACTOR_BITS, FRACTION_BITS, HUE_BITS, WARPS, Op
from udkd.utils.hash32 import hash32

MEAN = (124, 116, 104)
"""ImageNet's mean colour: 255 times (0.485, 0.456, 0.406)."""
_STD = (58.395, 57.12, 57.375)  # 255 times (0.229, 0.224, 0.225)
_SUM_STD = 147.8  # of the sum of four uniform bytes, whose mean is 510
_NOISE_BITS = 12
_CHUNK_VALUES = 1 << 19  # of a batch that an operation works on at once on a CPU: float32 copies stay in its cache
_BLUR_BITS = 11
_EXP2 = tuple(0.6931471805599453**n / math.factorial(n) for n in range(7, -1, -1))
_TURN = 6 << HUE_BITS


class OpSettings(NamedTuple):
    """What is the same for all samples: whether rotations, shears and translations sample bilinearly, or the nearest pixel;
    the colour of what they uncover; how many pixels a blur reaches.
    """

    bilinear: bool = False
    fill: tuple[int, int, int] = (0, 0, 0)
    blur_radius: int = 0


def apply_rows(
    pixels_BOO3: Tensor, op_BR: Tensor, magnitude_BR2: Tensor, rows: Sequence[Sequence[Op]], settings: OpSettings
) -> Tensor:
    """Apply the rows one after the other: uint8 [B, O, O, 3] to the same. rows: what each row can hold, from row_ops."""
    dense = torch.compiler.is_compiling() or pixels_BOO3.device.type != "cpu"
    run = _dense_row if dense else _grouped_row
    for row, ops in enumerate(rows):
        pixels_BOO3 = run(pixels_BOO3, op_BR[:, row], magnitude_BR2[:, row], ops, settings)
    return pixels_BOO3


def _grouped_row(x_BOO3: Tensor, op_B: Tensor, magnitude_B2: Tensor, ops: Sequence[Op], settings: OpSettings) -> Tensor:
    done = x_BOO3.clone()
    chunk = max(1, _CHUNK_VALUES // x_BOO3[0].numel())
    for op in ops:
        for samples in (op_B == op).nonzero()[:, 0].split(chunk):
            if len(samples):
                done[samples] = apply_op(op, x_BOO3[samples], magnitude_B2[samples], settings)
    return done


def _dense_row(x_BOO3: Tensor, op_B: Tensor, magnitude_B2: Tensor, ops: Sequence[Op], settings: OpSettings) -> Tensor:
    done = x_BOO3
    for op in ops:
        has_op_B = op_B == op
        own_B2 = torch.where(has_op_B[:, None], magnitude_B2, 0)  # another operation's magnitude could overflow
        done = torch.where(has_op_B.view(-1, 1, 1, 1), apply_op(op, x_BOO3, own_B2, settings), done)
    return done


def apply_op(op: Op, x_BOO3: Tensor, magnitude_B2: Tensor, settings: OpSettings) -> Tensor:
    """One operation on all samples: uint8 [B, O, O, 3] to the same. magnitude_B2: see udkd.augment.policies.encode.

    Compared with torchvision.transforms.v2.functional on uint8, see tests/augment/test_operations.py: equal, except contrast,
    saturation, grayscale and hue, within 1 of 255, blur within 1, and warps, whose coordinates are rounded to 2**-16.
    """
    if op in WARPS:
        return _warped(op, x_BOO3, magnitude_B2, settings)
    if op == Op.BLUR:
        return _blur(x_BOO3, magnitude_B2, settings.blur_radius)
    return _PIXELS[op](x_BOO3, magnitude_B2[:, 0].view(-1, 1, 1, 1))


def _bytes(x: Tensor) -> Tensor:
    """Whole or broken numbers to pixel values, rounded down as torchvision does."""
    return x.clamp(0, 255).to(torch.uint8)


def _factor(magnitude_B111: Tensor) -> Tensor:
    return magnitude_B111.float() * 2.0**-FACTOR_BITS


def _grey(x_BOO3: Tensor) -> Tensor:
    """floor(0.2989 r + 0.587 g + 0.114 b), float32 [B, O, O, 1]: torchvision's grey, in units of 1/10,000 without error."""
    red, green, blue = x_BOO3.float().unbind(-1)
    return ((red * 2989 + green * 5870 + blue * 1140 + 0.5) * 1e-4).floor()[..., None]


def _brightness(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    return _bytes(x_BOO3.float() * _factor(magnitude_B111))


def _contrast(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    count = x_BOO3.shape[1] * x_BOO3.shape[2]
    total_B111 = _grey(x_BOO3).sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).long()
    rest_B111 = (1 << FACTOR_BITS) - magnitude_B111.long()
    # (1 - factor) times the mean, rounded to 2**-13: with the product below it has 24 bits.
    offset_B111 = torch.div(2 * rest_B111 * total_B111 + count, 2 * count, rounding_mode="floor")
    return _bytes(x_BOO3.float() * _factor(magnitude_B111) + offset_B111.float() * 2.0**-FACTOR_BITS)


def _blended(x_BOO3: Tensor, other_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    factor_B111 = _factor(magnitude_B111)
    return _bytes(x_BOO3 * factor_B111 + other_BOO3 * (1 - factor_B111))


def _saturation(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    return _blended(x_BOO3.float(), _grey(x_BOO3), magnitude_B111)


def _grayscale(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    return _grey(x_BOO3).to(torch.uint8).expand_as(x_BOO3)


def _sharpness(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    """Blend with the mean of the 3 x 3 neighbours, of which the pixel itself counts five times; the border stays."""
    size_px = x_BOO3.shape[1]
    if size_px < 3:
        return x_BOO3
    x = x_BOO3.float()
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    inner = x[:, 1:-1, 1:-1]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner
    smooth = ((total + 6.5) * (1 / 13)).floor()  # to the nearest; there are no ties
    done = x_BOO3.clone()
    done[:, 1:-1, 1:-1] = _blended(inner, smooth, magnitude_B111)
    return done


def _solarize(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    return torch.where(x_BOO3 >= magnitude_B111, 255 - x_BOO3, x_BOO3)


def _solarize_add(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    return torch.where(x_BOO3 < 128, (x_BOO3 + magnitude_B111).clamp(max=255), x_BOO3).to(torch.uint8)


def _posterize(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    mask_B111 = 256 - (256 >> magnitude_B111.clamp(0, 8))
    return x_BOO3 & mask_B111.to(torch.uint8)


def _invert(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    return 255 - x_BOO3


def _autocontrast(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    low_B113, high_B113 = x_BOO3.amin((1, 2), keepdim=True), x_BOO3.amax((1, 2), keepdim=True)
    span_B113 = (high_B113 - low_B113).double()
    # torchvision's float32 scale; a float64 quotient is rounded alike on every device, a float32 one is not on a GPU.
    scale_B113 = torch.where(span_B113 > 0, 255 / span_B113.clamp(min=1), 1.0).float()
    low_B113 = torch.where(span_B113 > 0, low_B113, 0)
    return _bytes((x_BOO3 - low_B113).float() * scale_B113)


def _equalize(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    batch, size_px = x_BOO3.shape[:2]
    count = size_px * size_px
    value_BP3 = x_BOO3.reshape(batch, count, 3).long()
    channel_B13 = torch.arange(batch * 3, device=x_BOO3.device).view(batch, 1, 3) * 256
    place = (value_BP3 + channel_B13).view(-1)
    histogram = torch.zeros(batch * 3 * 256, dtype=torch.int64, device=x_BOO3.device)
    histogram = histogram.scatter_add(0, place, torch.ones_like(place)).view(batch, 3, 256)
    running = histogram.cumsum(-1)
    # The highest value's count is left out: everything below it is spread over 255 steps.
    highest = (histogram > 0).long().mul(torch.arange(256, device=x_BOO3.device)).amax(-1, keepdim=True)
    step = torch.div(count - histogram.gather(-1, highest), 255, rounding_mode="floor")
    table = torch.div(running + torch.div(step, 2, rounding_mode="floor"), step.clamp(min=1), rounding_mode="floor")
    table = F.pad(table, (1, 0))[..., :-1].clamp(0, 255)
    table = torch.where(step > 0, table, torch.arange(256, device=x_BOO3.device)).to(torch.uint8)
    return table.view(-1).index_select(0, place).view_as(x_BOO3)


def _hue(x_BOO3: Tensor, magnitude_B111: Tensor) -> Tensor:
    """Shift the hue: the sextant and the place in it are integers, in units of span / 2**12."""
    x = x_BOO3.int()
    red, green, blue = x.unbind(-1)
    high, low = x.amax(-1), x.amin(-1)
    span = high - low
    one = 1 << HUE_BITS
    place = (
        torch.where(high == red, green - blue, torch.where(high == green, blue - red + 2 * span, red - green + 4 * span)) * one
    )
    place = place + 6 * magnitude_B111[..., 0] * span
    turn = _TURN * span
    place = torch.where(place < 0, place + turn, place)
    place = torch.where(place >= turn, place - turn, place)
    unit = (one * span).clamp(min=1)
    sextant = (place.unsqueeze(-1) >= unit.unsqueeze(-1) * torch.arange(1, 6, device=x.device, dtype=torch.int32)).sum(-1)
    rest = place - sextant.int() * one * span
    v = high * one
    p = low * one
    q = v - rest
    t = p + rest
    # As torchvision, which multiplies by 255.999 before it rounds down.
    v, p, q, t = ((each + (each >> 8)) >> HUE_BITS for each in (v, p, q, t))
    channels = []
    for order in ((v, q, p, p, t, v), (t, v, v, q, p, p), (p, p, t, v, v, q)):
        channel = order[0]
        for number in range(1, 6):
            channel = torch.where(sextant == number, order[number], channel)
        channels.append(channel)
    return torch.stack(channels, dim=-1).to(torch.uint8)


def _blur(x_BOO3: Tensor, magnitude_B2: Tensor, radius: int) -> Tensor:
    """Gaussian blur with reflected borders, as torchvision's gaussian_blur with 2 radius + 1 taps."""
    weight_BK = _gaussian(magnitude_B2[:, 0], radius).int()
    once = _blurred(x_BOO3.int(), weight_BK, radius, 1)
    twice = _blurred(once, weight_BK, radius, 2)  # 8 bits of the pixel and 11 of each weight: 30 in all
    return ((twice + (1 << (2 * _BLUR_BITS - 1))) >> (2 * _BLUR_BITS)).to(torch.uint8)


def _blurred(x: Tensor, weight_BK: Tensor, radius: int, dim: int) -> Tensor:
    size_px = x.shape[dim]
    place = torch.arange(-radius, size_px + radius, device=x.device).abs() % max(1, 2 * (size_px - 1))
    padded = x.index_select(dim, torch.minimum(place, 2 * (size_px - 1) - place))
    total = padded.narrow(dim, radius, size_px) * weight_BK[:, 0].view(-1, 1, 1, 1)
    for k in range(1, radius + 1):
        both = padded.narrow(dim, radius - k, size_px) + padded.narrow(dim, radius + k, size_px)
        total = total + both * weight_BK[:, k].view(-1, 1, 1, 1)
    return total


def _gaussian(exponent_B: Tensor, radius: int) -> Tensor:
    """2**(-exponent k**2) for k = 0 … radius, as integers that sum to 2**11 over both sides: int64 [B, radius + 1]."""
    place = torch.arange(radius + 1, device=exponent_B.device)
    power_BK = exponent_B.long()[:, None] * place * place
    fraction, one = power_BK & ((1 << FRACTION_BITS) - 1), 1 << 30
    series = torch.zeros_like(power_BK)
    for coefficient in _EXP2:  # Horner's scheme for 2**-fraction
        series = round(coefficient * one) - ((series * fraction) >> FRACTION_BITS)
    weight_BK = series >> (power_BK >> FRACTION_BITS).clamp(max=31)
    total_B1 = 2 * weight_BK.sum(-1, keepdim=True) - weight_BK[:, :1]
    sides_BK = torch.div((weight_BK[:, 1:] << (_BLUR_BITS + 1)) + total_B1, 2 * total_B1, rounding_mode="floor")
    return torch.cat([(1 << _BLUR_BITS) - 2 * sides_BK.sum(-1, keepdim=True), sides_BK], dim=-1)


_PIXELS: Mapping[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.BRIGHTNESS: _brightness,
    Op.CONTRAST: _contrast,
    Op.SATURATION: _saturation,
    Op.HUE: _hue,
    Op.SHARPNESS: _sharpness,
    Op.SOLARIZE: _solarize,
    Op.SOLARIZE_ADD: _solarize_add,
    Op.POSTERIZE: _posterize,
    Op.INVERT: _invert,
    Op.AUTOCONTRAST: _autocontrast,
    Op.EQUALIZE: _equalize,
    Op.GRAYSCALE: _grayscale,
}


def _warped(op: Op, x_BOO3: Tensor, magnitude_B2: Tensor, settings: OpSettings) -> Tensor:
    """Rotate, shear or translate. Source coordinates are int32 in 2**-16 pixels: a sum of a row's and a column's part."""
    batch, size_px = x_BOO3.shape[:2]
    along = torch.arange(size_px, device=x_BOO3.device, dtype=torch.int32)
    first_B1, second_B1 = magnitude_B2[:, :1], magnitude_B2[:, 1:]
    one = 1 << FRACTION_BITS
    own_1O = (along * one)[None].expand(batch, -1)
    zero = torch.zeros_like(own_1O)
    if op == Op.ROTATE:
        twice_1O = (2 * along - (size_px - 1))[None]
        middle = (size_px - 1) * (one // 2)
        x_of_column = torch.div(first_B1 * twice_1O, 2, rounding_mode="floor") + middle
        x_of_row = -torch.div(second_B1 * twice_1O, 2, rounding_mode="floor")
        y_of_column = torch.div(second_B1 * twice_1O, 2, rounding_mode="floor")
        y_of_row = torch.div(first_B1 * twice_1O, 2, rounding_mode="floor") + middle
    elif op == Op.SHEAR_X:
        x_of_column, x_of_row = own_1O, -torch.div(first_B1 * (2 * along + 1)[None], 2, rounding_mode="floor")
        y_of_column, y_of_row = zero, own_1O
    elif op == Op.SHEAR_Y:
        x_of_column, x_of_row = own_1O, zero
        y_of_column, y_of_row = -torch.div(first_B1 * (2 * along + 1)[None], 2, rounding_mode="floor"), own_1O
    else:
        px_B1 = ((first_B1.long() * size_px + one // 2) >> FRACTION_BITS).int() * one
        x_of_column, x_of_row = own_1O - (px_B1 if op == Op.TRANSLATE_X else 0), zero
        y_of_column, y_of_row = zero, own_1O - (px_B1 if op == Op.TRANSLATE_Y else 0)
    column_BOO = x_of_column[:, None, :] + x_of_row[:, :, None]
    row_BOO = y_of_column[:, None, :] + y_of_row[:, :, None]
    return (_bilinear if settings.bilinear else _nearest)(x_BOO3, row_BOO, column_BOO, settings.fill)


def _nearest(x_BOO3: Tensor, row_BOO: Tensor, column_BOO: Tensor, fill: tuple[int, int, int]) -> Tensor:
    half = 1 << (FRACTION_BITS - 1)
    return _at(x_BOO3, (row_BOO + half) >> FRACTION_BITS, (column_BOO + half) >> FRACTION_BITS, fill)


def _bilinear(x_BOO3: Tensor, row_BOO: Tensor, column_BOO: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """Four neighbours, weighted with the coordinates' first eight bits after the point: 24 bits in all, exact in float32."""
    drop = FRACTION_BITS - 8
    row_BOO, column_BOO = ((each + (1 << (drop - 1))) >> drop for each in (row_BOO, column_BOO))
    down, right = (each & 255 for each in (row_BOO, column_BOO))
    top, left = row_BOO >> 8, column_BOO >> 8
    total = torch.zeros(1, device=x_BOO3.device)
    for dy, weight_y in ((0, 256 - down), (1, down)):
        for dx, weight_x in ((0, 256 - right), (1, right)):
            total = total + (weight_y * weight_x)[..., None].float() * _at(x_BOO3, top + dy, left + dx, fill).float()
    return ((total + 2.0**15) * 2.0**-16).floor().to(torch.uint8)


def _at(x_BOO3: Tensor, row_BOO: Tensor, column_BOO: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """The pixels at whole coordinates; the fill colour outside."""
    batch, size_px = x_BOO3.shape[:2]
    within = (row_BOO >= 0) & (row_BOO < size_px) & (column_BOO >= 0) & (column_BOO < size_px)
    place_BOO = row_BOO.clamp(0, size_px - 1).long() * size_px + column_BOO.clamp(0, size_px - 1)
    place_BOO = place_BOO + (torch.arange(batch, device=x_BOO3.device) * size_px * size_px)[:, None, None]
    taken = x_BOO3.reshape(-1, 3).index_select(0, place_BOO.view(-1)).view_as(x_BOO3)
    colour = torch.stack([x_BOO3.new_full((), value) for value in fill])
    return torch.where(within[..., None], taken, colour)


def inside(box_B4: Tensor, size_px: int) -> Tensor:
    """Which pixels of views of size_px lie in a box of 2**-16 of the side: bool [B, O, O, 1]."""
    edge_B4 = (box_B4.long() * size_px + (1 << (BOX_BITS - 1))) >> BOX_BITS
    top, left, bottom, right = (edge_B.view(-1, 1, 1, 1) for edge_B in edge_B4.unbind(1))
    along = torch.arange(size_px, device=box_B4.device)
    row, column = along.view(1, -1, 1, 1), along.view(1, 1, -1, 1)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def erase(pixels_BOO3: Tensor, box_B4: Tensor, noise_key_B: Tensor, fill: EraseFill) -> Tensor:
    """Fill the boxes: uint8 [B, O, O, 3] to the same. Noise is a hash of (key, pixel, channel)."""
    size_px = pixels_BOO3.shape[1]
    if fill == "mean":
        filled = torch.stack([pixels_BOO3.new_full((), value) for value in MEAN])
    else:
        filled = _noise(noise_key_B, size_px)
    return torch.where(inside(box_B4, size_px), filled, pixels_BOO3)


def _noise(key_B: Tensor, size_px: int) -> Tensor:
    """Nearly normal noise with ImageNet's mean and deviation, clipped: uint8 [B, O, O, 3], from the sum of a hash's bytes."""
    place = torch.arange(size_px * size_px * 3, device=key_B.device)
    bits = hash32(place + hash32(key_B)[:, None])
    total = ((bits & 255) + ((bits >> 8) & 255) + ((bits >> 16) & 255) + (bits >> 24) - 510).view(-1, size_px, size_px, 3)
    half = 1 << (_NOISE_BITS - 1)
    channels = [
        mean + ((each * round(std / _SUM_STD * (1 << _NOISE_BITS)) + half) >> _NOISE_BITS)
        for mean, std, each in zip(MEAN, _STD, total.unbind(-1), strict=True)
    ]
    return torch.stack(channels, dim=-1).clamp(0, 255).to(torch.uint8)


def mix(pixels_BOO3: Tensor, mate_B: Tensor, blend_B: Tensor, box_B4: Tensor) -> Tensor:
    """Mix each view with the one at position mate_B: MixUp's blend, to the nearest, and CutMix's box."""
    other_BOO3 = pixels_BOO3.index_select(0, mate_B)
    share_B111 = blend_B.view(-1, 1, 1, 1).float() * 2.0**-BLEND_BITS
    blended = (pixels_BOO3.float() * share_B111 + other_BOO3.float() * (1 - share_B111) + 0.5).floor().to(torch.uint8)
    return torch.where(inside(box_B4, pixels_BOO3.shape[1]), other_BOO3, blended)
