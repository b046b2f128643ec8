"""Applies a view's operations, erasing and mixing to uint8 pixels, exactly: the same bits on every device and processor.

Every value is an integer, or a float32 that holds one exactly, so that no order of operations, fused multiply-add, thread count
or compiler can change a bit. Where a quotient is rounded down, the margin to the next integer is far above float32's error.
No product of matrices is used: its precision depends on settings of the process.

On a CPU each operation runs on the samples that have it. On a GPU, and in a compiled graph, every operation that a row can hold
runs on all samples, with a magnitude that changes nothing where the sample has another one: no shape depends on the data, and
the host waits for nothing. Both call the same functions.

Pixels are [B, O, O, 3] outside of this module and [B, 3, O, O] in it. On a CPU each channel is a plane of memory, for its
vector instructions; on a GPU channels lie side by side.

Letters: B batch, O side of the view, R rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import repeat
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
_CHUNK_VALUES = 1 << 18  # that an operation works on at once on a CPU, so that float32 copies stay in its cache
_BLUR_BITS, _BLUR_DROP = 15, 8  # of a weight; what a first pass drops of its 23 bits
_COORDINATE_BITS, _WEIGHT_BITS = 11, 16  # of bilinear warps
_EXP2 = tuple(0.6931471805599453**n / math.factorial(n) for n in range(7, -1, -1))


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
    x_B3OO = _to_change(pixels_BOO3)
    if eager_on_cpu(x_B3OO):
        change_rows(x_B3OO, op_BR, magnitude_BR2, settings)
        return x_B3OO.permute(0, 2, 3, 1)
    for row, ops in enumerate(rows):
        x_B3OO = _dense_row(x_B3OO, op_BR[:, row], magnitude_BR2[:, row], ops, settings)
    return x_B3OO.permute(0, 2, 3, 1).contiguous()  # look-ups return planes


def eager_on_cpu(x: Tensor) -> bool:
    """Whether operations run eagerly on a CPU: each on its own samples only, which it overwrites."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _to_change(pixels_BOO3: Tensor) -> Tensor:
    """[B, 3, O, O]; eagerly on a CPU a copy in planes."""
    x_B3OO = pixels_BOO3.permute(0, 3, 1, 2)
    return x_B3OO.clone(memory_format=torch.contiguous_format) if eager_on_cpu(x_B3OO) else x_B3OO


def change_rows(x_B3OO: Tensor, op_BR: Tensor, magnitude_BR2: Tensor, settings: OpSettings) -> None:
    """`apply_rows` in place: contiguous uint8 [B, 3, O, O] on a CPU."""
    size_px = x_B3OO.shape[-1]
    several = max(1, _CHUNK_VALUES // max(1, 3 * size_px * size_px))
    for row, op_B in enumerate(op_BR.T.tolist()):
        samples_of: dict[int, list[int]] = {}
        for sample, op in enumerate(op_B):
            samples_of.setdefault(op, []).append(sample)
        for op, samples in samples_of.items():
            if op == Op.IDENTITY:
                continue
            parameters = _parameters(Op(op), magnitude_BR2[samples, row], size_px, settings)
            if in_place := _IN_PLACE.get(Op(op)):
                chunk, change = len(samples) if _are_neighbours(samples) else 1, in_place
            else:
                chunk, change = several, partial(_changed, Op(op), settings=settings)
            parts = zip(*(torch.split(each, chunk) for each in parameters), strict=True) if parameters else repeat(())
            for first, part in zip(range(0, len(samples), chunk), parts, strict=False):
                own = samples[first : first + chunk]
                if _are_neighbours(own):
                    x = x_B3OO[own[0] : own[-1] + 1]
                    if (done := change(x, *part)) is not x:
                        x.copy_(done)
                else:
                    done = change(torch.cat([x_B3OO[n : n + 1] for n in own]), *part)
                    for sample, image in zip(own, done, strict=True):
                        x_B3OO[sample].copy_(image)


def _are_neighbours(samples: Sequence[int]) -> bool:
    return samples[-1] - samples[0] == len(samples) - 1


def _dense_row(x_B3OO: Tensor, op_B: Tensor, magnitude_B2: Tensor, ops: Sequence[Op], settings: OpSettings) -> Tensor:
    """All warps are one gather, and all tables one look-up. Op.value, as torch.compile takes `tensor == Op` to be False."""
    done = x_B3OO
    if any(op in WARPS for op in ops):
        done = _resampled(x_B3OO, _source(op_B, magnitude_B2, x_B3OO.shape[-1]), settings).to(torch.uint8)
    with_table = [op for op in ops if op in _TABLES]
    if with_table:
        table_B3V = _TABLES[with_table[0]](x_B3OO)
        has_table_B = op_B == with_table[0].value
        for op in with_table[1:]:
            has_op_B = op_B == op.value
            table_B3V = torch.where(has_op_B.view(-1, 1, 1), _TABLES[op](x_B3OO), table_B3V)
            has_table_B = has_table_B | has_op_B
        done = torch.where(has_table_B.view(-1, 1, 1, 1), _looked_up(x_B3OO, table_B3V), done)
    for op in ops:
        if op not in WARPS and op not in _TABLES:
            has_op_B = op_B == op.value
            own_B2 = torch.where(has_op_B[:, None], magnitude_B2, 0)  # another operation's magnitude could overflow
            changed = _changed(op, x_B3OO, *_parameters(op, own_B2, x_B3OO.shape[-1], settings), settings=settings)
            done = torch.where(has_op_B.view(-1, 1, 1, 1), changed.to(torch.uint8), done)
    return done


def apply_op(op: Op, x_BOO3: Tensor, magnitude_B2: Tensor, settings: OpSettings) -> Tensor:
    """One operation on all samples: uint8 [B, O, O, 3] to the same. magnitude_B2: see udkd.augment.policies.encode.

    The largest difference, of 255, from torchvision.transforms.v2.functional on uint8 tensors, and from Pillow's functions and
    timm's for factors up to 2, both with the magnitude as encoded; tests/augment/test_operations.py:

    ============================================  ===========  ======
    operation                                     torchvision  Pillow
    ============================================  ===========  ======
    solarize, posterize, invert, equalize         0            0
    solarize_add                                  (none)       0
    brightness, autocontrast                      0            1
    grayscale                                     1            1
    sharpness, saturation                         1            2
    contrast                                      1            3
    hue, blur (gaussian_blur of 2 radius + 1 px)  1            (other)
    warps, nearest, see below                     0            0
    warps, bilinear, the border too               2            (other)
    ============================================  ===========  ======

    Nearest warps take another pixel only where the exact source is within (O + 4) / 2**17 px of a border between two pixels:
    rounding decides. A black fill is torchvision's default fill=None; bilinear warps of it, and those with a colour, which
    torchvision blends twice at the border, match. Where 1 or 2 is stated, under 1 % of values differ, 2 % of blurs and 5 % of
    bilinear warps; found by search, except that bilinear coordinates and weights prove a bound of 2.
    """
    x_B3OO = _to_change(x_BOO3)
    parameters = _parameters(op, magnitude_B2, x_BOO3.shape[1], settings)
    return _changed(op, x_B3OO, *parameters, settings=settings).to(torch.uint8).permute(0, 2, 3, 1)


def _parameters(op: Op, magnitude_B2: Tensor, size_px: int, settings: OpSettings) -> Sequence[Tensor]:
    """What an operation computes once for all its samples: tensors [B, …]."""
    if op in WARPS:
        return _source(torch.full_like(magnitude_B2[:, 0], op.value), magnitude_B2, size_px)
    if op == Op.BLUR:
        return (_gaussian(magnitude_B2[:, 0], settings.blur_radius).int(),)
    return _PARAMETERS[op](magnitude_B2[:, 0].view(-1, 1, 1, 1)) if op in _PARAMETERS else ()


def _changed(op: Op, x_B3OO: Tensor, *parameters: Tensor, settings: OpSettings) -> Tensor:
    """The result's values, of any dtype: to store them is to convert them. Eagerly on a CPU perhaps the input, overwritten."""
    if op in WARPS:
        if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y) and eager_on_cpu(x_B3OO):
            return _moved(x_B3OO, _Source(*parameters), settings.fill)
        return _resampled(x_B3OO, _Source(*parameters), settings)
    return _PIXELS[op](x_B3OO, *parameters)


def _own(x_B3OO: Tensor) -> Tensor:
    """Pixels to overwrite."""
    return x_B3OO if eager_on_cpu(x_B3OO) else x_B3OO.clone()


def _bytes(x: Tensor) -> Tensor:
    """float32, which is overwritten, to values of pixels, rounded down as torchvision does."""
    return _from_range(x.clamp_(0, 255))


def _from_range(x: Tensor) -> Tensor:
    """float32 in [0, 255], rounded down: int16, as a CPU converts float32 to uint8 directly in three times the time."""
    return x.short()


def _factor(magnitude_B111: Tensor) -> Tensor:
    return magnitude_B111.float() * 2.0**-FACTOR_BITS


def _grey(x_B3OO: Tensor) -> Tensor:
    """floor(0.2989 r + 0.587 g + 0.114 b) of float32: torchvision's grey, in units of 1/10,000 without error; [B, O, O]."""
    red, green, blue = x_B3OO.unbind(1)
    return (red * 2989).add_(green, alpha=5870).add_(blue, alpha=1140).add_(0.5).mul_(1e-4).floor_()


def _brightness(x_B3OO: Tensor, factor_B111: Tensor) -> Tensor:
    return _bytes(x_B3OO.float().mul_(factor_B111))


def _contrast(x_B3OO: Tensor, factor_B111: Tensor, rest_B111: Tensor) -> Tensor:
    """rest: 1 - factor, int64 in 2**-FACTOR_BITS."""
    x = x_B3OO.float()
    count = x.shape[-1] ** 2
    row_sums_BO = _grey(x).sum(-1)  # 21 bits
    total_B111 = row_sums_BO.long().sum(-1).view(-1, 1, 1, 1)
    # (1 - factor) times the mean, rounded to 2**-13: with the product below it has 24 bits.
    offset_B111 = torch.div(2 * rest_B111 * total_B111 + count, 2 * count, rounding_mode="floor")
    return _bytes(x.mul_(factor_B111).add_(offset_B111.float() * 2.0**-FACTOR_BITS))


def _saturation(x_B3OO: Tensor, rest_B111: Tensor) -> Tensor:
    """rest: 1 - factor."""
    x = x_B3OO.float()
    return _bytes(x.lerp_(_grey(x)[:, None], rest_B111))


def _grayscale(x_B3OO: Tensor) -> Tensor:
    return _from_range(_grey(x_B3OO.float()))[:, None].expand(-1, 3, -1, -1)


def _sharpness(x_B3OO: Tensor, factor_B111: Tensor) -> Tensor:
    """Blend with the mean of the 3 x 3 neighbours, of which the pixel itself counts five times; the border stays."""
    if x_B3OO.shape[-1] < 3:
        return x_B3OO
    x = x_B3OO.short()
    rows = (x[..., :-2, :] + x[..., 1:-1, :]).add_(x[..., 2:, :])
    inner = x[..., 1:-1, 1:-1]
    total = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(inner, alpha=4)
    smooth = total.float().add_(6.5).mul_(1 / 13).floor_()  # to the nearest; there are no ties
    done = _own(x_B3OO)
    done[..., 1:-1, 1:-1] = _bytes(smooth.lerp_(inner.float(), factor_B111))
    return done


# Comparisons and torch.where are not vectorised on a CPU, and cost six times as much as arithmetic on bytes.


def _solarize_parameters(magnitude_B111: Tensor) -> tuple[Tensor, Tensor]:
    below_B111 = (magnitude_B111 - 1).clamp(min=0).to(torch.uint8)
    return below_B111, torch.where(magnitude_B111 > 0, magnitude_B111 - 1, 1).to(torch.uint8)


def _solarize(x_B3OO: Tensor, below_B111: Tensor, floor_B111: Tensor) -> Tensor:
    above = torch.maximum(x_B3OO, floor_B111).sub_(below_B111)  # 0 below the threshold
    return _own(x_B3OO).bitwise_xor_(above.clamp_(max=1).mul_(255))


def _solarize_add(x_B3OO: Tensor, added_B111: Tensor) -> Tensor:
    added = (x_B3OO >> 7).sub_(1).bitwise_and_(added_B111)  # 0 from 128 on
    return _own(x_B3OO).add_(torch.minimum(added, ~x_B3OO))


def _posterize(x_B3OO: Tensor, mask_B111: Tensor) -> Tensor:
    return x_B3OO & mask_B111


def _invert(x_B3OO: Tensor) -> Tensor:
    return ~x_B3OO


def _range(x_B3OO: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's lowest value and torchvision's float32 divisor, span times 1/255: [B, 3]; 0 and 1 where all are equal."""
    x = x_B3OO if eager_on_cpu(x_B3OO) else x_B3OO.int()  # the least of bytes is 0 by inductor, PyTorch issue 191499
    low_B3 = x.amin((2, 3)).float()
    span_B3 = x.amax((2, 3)).float() - low_B3
    return torch.where(span_B3 > 0, low_B3, 0.0), torch.where(span_B3 > 0, span_B3 * (1 / 255), 1.0)


def _autocontrast(x_B3OO: Tensor) -> Tensor:
    if not eager_on_cpu(x_B3OO):
        return _looked_up(x_B3OO, _autocontrast_table(x_B3OO))
    low_B311, scale_B311 = (each[..., None, None] for each in _range(x_B3OO))
    return _from_range(x_B3OO.float().sub_(low_B311).div_(scale_B311))


def _autocontrast_table(x_B3OO: Tensor) -> Tensor:
    """The result for each of 256 values: uint8 [B, 3, 256]. A GPU's compiled float32 quotient is not rounded to the nearest.
    A float64 one is; rounded again, to float32, it is the float32 quotient, as 53 bits are more than twice 24 and two.
    """
    low_B3, scale_B3 = (each[..., None] for each in _range(x_B3OO))
    value = torch.arange(256, device=x_B3OO.device, dtype=torch.float64)
    return _bytes(((value - low_B3) / scale_B3.double()).float()).to(torch.uint8)


def _equalize(x_B3OO: Tensor) -> Tensor:
    return _looked_up(x_B3OO, _equalize_table(x_B3OO))


def _equalize_table(x_B3OO: Tensor) -> Tensor:
    """The result for each of 256 values: uint8 [B, 3, 256]."""
    count = x_B3OO.shape[-1] ** 2
    histogram = _histogram(x_B3OO)
    running = histogram.cumsum(-1)
    value = torch.arange(256, device=x_B3OO.device)
    # The highest value's count is left out: everything below it is spread over 255 steps.
    highest = (histogram.clamp(max=1) * value).amax(-1, keepdim=True)
    step = torch.div(count - histogram.gather(-1, highest), 255, rounding_mode="floor")
    table = torch.div(running + torch.div(step, 2, rounding_mode="floor"), step.clamp(min=1), rounding_mode="floor")
    table = F.pad(table, (1, 0))[..., :-1].clamp(0, 255)
    return torch.where(step > 0, table, value).to(torch.uint8)


def _histogram(x_B3OO: Tensor) -> Tensor:
    """How many pixels have each value: int64 [B, 3, 256]."""
    batch = len(x_B3OO)
    if eager_on_cpu(x_B3OO):  # four times as fast as scatter_add, but the shape of its result depends on the data
        return torch.stack([line.bincount(minlength=256) for line in x_B3OO.view(batch * 3, -1)]).view(batch, 3, 256)
    place = _places(x_B3OO).long().flatten()
    histogram = torch.zeros(batch * 3 * 256, dtype=torch.int64, device=x_B3OO.device)
    return histogram.scatter_add(0, place, torch.ones_like(place)).view(batch, 3, 256)


def _places(x_B3OO: Tensor) -> Tensor:
    """Where each value is in a table [B, 3, 256]: int32 [B, 3, O, O]."""
    channel = torch.arange(len(x_B3OO) * 3, device=x_B3OO.device, dtype=torch.int32) * 256
    return x_B3OO.int().add_(channel.view(-1, 3, 1, 1))


def _looked_up(x_B3OO: Tensor, table_B3V: Tensor) -> Tensor:
    return _taken(table_B3V.reshape(-1), _places(x_B3OO))


def _taken(values_N: Tensor, place: Tensor) -> Tensor:
    """The values at some places, in their shape."""
    if torch.compiler.is_compiling():  # one kernel with what computes the places
        return values_N[place]
    return values_N.index_select(0, place.flatten()).view(place.shape)


def _hue(x_B3OO: Tensor, shift_B111: Tensor) -> Tensor:
    """Shift the hue, in units of span / 2**12, without branches: a channel is high - span clamp(min(k, 4 - k), 0, 1) with
    k = (n + 6 hue) mod 6 and n = 5, 3, 1 for red, green, blue. shift: six times the hue's.
    """
    x = x_B3OO.int()
    red, green, blue = x.unbind(1)
    high, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    span = high - low
    red_is_high, green_is_high = (high - red - 1) >> 31, (high - green - 1) >> 31  # all bits set, or none
    place = blue - red + 2 * span
    place = place ^ ((place ^ (red - green + 4 * span)) & ~green_is_high)
    place = place ^ ((place ^ (green - blue)) & red_is_high)
    one, turn = span << HUE_BITS, 6 * (span << HUE_BITS)
    place = _wrapped((place << HUE_BITS) + shift_B111[..., 0] * span + turn, turn)
    place_B1OO, one_B1OO, turn_B1OO = (each[:, None] for each in (_wrapped(place, turn), one, turn))
    n_311 = 5 - 2 * torch.arange(3, device=x.device, dtype=torch.int32).view(3, 1, 1)
    k = _wrapped(place_B1OO + n_311 * one_B1OO, turn_B1OO)
    value = (high << HUE_BITS)[:, None] - torch.minimum(torch.minimum(k, 4 * one_B1OO - k).clamp_(min=0), one_B1OO)
    # As torchvision, which multiplies by 255.999 before it rounds down.
    return (value + (value >> 8)) >> HUE_BITS


def _wrapped(x: Tensor, turn: Tensor) -> Tensor:
    """Less a turn, where x in [0, 2 turns) has one: int32."""
    less = x - turn
    return less + (turn & (less >> 31))


def _blur(x_B3OO: Tensor, weight_BK: Tensor) -> Tensor:
    """Gaussian blur with reflected borders, as torchvision's gaussian_blur with 2 radius + 1 taps."""
    radius = weight_BK.shape[1] - 1
    if eager_on_cpu(x_B3OO):  # most weights of a small sigma are 0
        radius = int(weight_BK.amax(0).nonzero().amax())
    once = _blurred(x_B3OO.int(), weight_BK, radius, 2)
    once = (once + (1 << (_BLUR_DROP - 1))) >> _BLUR_DROP
    twice = _blurred(once, weight_BK, radius, 3)  # 8 + 7 bits of the pixel and 15 of each weight: 30 in all
    drop = 2 * _BLUR_BITS - _BLUR_DROP
    return (twice + (1 << (drop - 1))) >> drop


def _blurred(x: Tensor, weight_BK: Tensor, radius: int, dim: int) -> Tensor:
    size_px = x.shape[dim]
    place = torch.arange(-radius, size_px + radius, device=x.device).abs() % max(1, 2 * (size_px - 1))
    place = torch.minimum(place, 2 * (size_px - 1) - place)
    if torch.compiler.is_compiling():  # a loop over the taps; unrolled, it takes a minute to compile
        tap = torch.arange(2 * radius + 1, device=x.device)
        weight_BT11 = weight_BK.index_select(1, (tap - radius).abs())[:, :, None, None]
        padded = x.index_select(dim, place)
        place = torch.arange(size_px, device=x.device)[:, None] + tap
        lines = padded.transpose(1, dim).index_select(1, place.view(-1))
        lines = lines.view(len(x), size_px, len(tap), *lines.shape[2:])
        blurred: Tensor = (lines * weight_BT11[:, None]).sum(2, dtype=torch.int32).transpose(1, dim)
        return blurred
    sides = (x.index_select(dim, side) for side in (place[:radius], place[size_px + radius :]))
    padded = torch.cat([next(sides), x, next(sides)], dim)
    total = padded.narrow(dim, radius, size_px) * weight_BK[:, 0].view(-1, 1, 1, 1)
    for k in range(1, radius + 1):
        both = padded.narrow(dim, radius - k, size_px) + padded.narrow(dim, radius + k, size_px)
        total.addcmul_(both, weight_BK[:, k].view(-1, 1, 1, 1))
    return total


def _gaussian(exponent_B: Tensor, radius: int) -> Tensor:
    """2**(-exponent k**2) for k = 0 … radius, as integers that sum to 2**15 over both sides: int64 [B, radius + 1]."""
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


_PIXELS: Mapping[Op, Callable[..., Tensor]] = {
    Op.BRIGHTNESS: _brightness,
    Op.CONTRAST: _contrast,
    Op.SATURATION: _saturation,
    Op.HUE: _hue,
    Op.BLUR: _blur,
    Op.SHARPNESS: _sharpness,
    Op.SOLARIZE: _solarize,
    Op.SOLARIZE_ADD: _solarize_add,
    Op.POSTERIZE: _posterize,
    Op.INVERT: _invert,
    Op.AUTOCONTRAST: _autocontrast,
    Op.EQUALIZE: _equalize,
    Op.GRAYSCALE: _grayscale,
}
_PARAMETERS: Mapping[Op, Callable[[Tensor], tuple[Tensor, ...]]] = {
    Op.BRIGHTNESS: lambda magnitude_B111: (_factor(magnitude_B111),),
    Op.CONTRAST: lambda magnitude_B111: (_factor(magnitude_B111), (1 << FACTOR_BITS) - magnitude_B111.long()),
    Op.SATURATION: lambda magnitude_B111: (1 - _factor(magnitude_B111),),
    Op.HUE: lambda magnitude_B111: (6 * magnitude_B111,),
    Op.SHARPNESS: lambda magnitude_B111: (_factor(magnitude_B111),),
    Op.SOLARIZE: _solarize_parameters,
    Op.SOLARIZE_ADD: lambda magnitude_B111: (magnitude_B111.to(torch.uint8),),
    Op.POSTERIZE: lambda magnitude_B111: ((256 - (256 >> magnitude_B111.clamp(0, 8))).to(torch.uint8),),
}
_IN_PLACE: Mapping[Op, Callable[..., Tensor]] = {Op.POSTERIZE: Tensor.bitwise_and_, Op.INVERT: Tensor.bitwise_not_}
_TABLES: Mapping[Op, Callable[[Tensor], Tensor]] = {Op.AUTOCONTRAST: _autocontrast_table, Op.EQUALIZE: _equalize_table}


class _Source(NamedTuple):
    """Where warped pixels come from: x = x_of_column + x_of_row, y likewise; int32 [B, O] in 2**-16 pixels."""

    x_of_column: Tensor
    x_of_row: Tensor
    y_of_column: Tensor
    y_of_row: Tensor

    def rounded(self, bits: int, border_px: int) -> tuple[Tensor, Tensor]:
        """Rounded y and x, in 2**-bits pixels of views with a border: int32 [B, O, O]."""
        drop = FRACTION_BITS - bits
        added = (border_px << FRACTION_BITS) + (1 << (drop - 1))
        y = (self.y_of_row + added)[:, :, None] + self.y_of_column[:, None, :]
        x = (self.x_of_column + added)[:, None, :] + self.x_of_row[:, :, None]
        return y.bitwise_right_shift_(drop), x.bitwise_right_shift_(drop)


def _resampled(x_B3OO: Tensor, source: _Source, settings: OpSettings) -> Tensor:
    return (_bilinear if settings.bilinear else _nearest)(x_B3OO, source, settings.fill)


def _moved(x_B3OO: Tensor, source: _Source, fill: tuple[int, int, int]) -> Tensor:
    """`_resampled` of translations, which are whole pixels."""
    size_px = x_B3OO.shape[-1]
    done = _filled(x_B3OO, fill, size_px)
    tops, lefts = ((-each[:, 0] >> FRACTION_BITS).tolist() for each in (source.y_of_row, source.x_of_column))
    for image_3OO, moved_3OO, top, left in zip(x_B3OO, done, tops, lefts, strict=True):
        height, width = max(0, size_px - abs(top)), max(0, size_px - abs(left))
        to_y, to_x, from_y, from_x = max(0, top), max(0, left), max(0, -top), max(0, -left)
        part = image_3OO[:, from_y : from_y + height, from_x : from_x + width]
        moved_3OO[:, to_y : to_y + height, to_x : to_x + width] = part
    return done


def _filled(x_B3OO: Tensor, fill: tuple[int, int, int], size_px: int) -> Tensor:
    """Nothing but the fill: uint8 [B, 3, size_px, size_px]."""
    colour_311 = torch.stack([x_B3OO.new_full((), value) for value in fill]).view(3, 1, 1)
    return colour_311.repeat(len(x_B3OO), 1, size_px, size_px)


def _source(op_B: Tensor, magnitude_B2: Tensor, size_px: int) -> _Source:
    """That of rotations, shears and translations; any other operation leaves pixels where they are."""
    one = 1 << FRACTION_BITS
    first_B, second_B = magnitude_B2.long().unbind(1)
    whole_px_B = ((first_B * size_px + one // 2) >> FRACTION_BITS) * one
    rotates = op_B == Op.ROTATE.value
    cos_B, sin_B = torch.where(rotates, first_B, one), torch.where(rotates, second_B, 0)
    shear_x_B, shear_y_B = torch.where(op_B == Op.SHEAR_X.value, first_B, 0), torch.where(op_B == Op.SHEAR_Y.value, first_B, 0)
    right_B = torch.where(op_B == Op.TRANSLATE_X.value, whole_px_B, 0)
    down_B = torch.where(op_B == Op.TRANSLATE_Y.value, whole_px_B, 0)
    # Twice the coordinates of output pixel (0, 0): rotations turn around the view's centre, shears keep its top left corner.
    twice_x_B = (size_px - 1) * (one - cos_B + sin_B) + shear_x_B - 2 * right_B
    twice_y_B = (size_px - 1) * (one - cos_B - sin_B) + shear_y_B - 2 * down_B
    along = torch.arange(size_px, device=op_B.device)
    far = 1 << 30  # outside of any view, and with another part still an int32
    parts = (
        cos_B[:, None] * along + (twice_x_B >> 1)[:, None],
        (shear_x_B - sin_B)[:, None] * along,
        (shear_y_B + sin_B)[:, None] * along,
        cos_B[:, None] * along + (twice_y_B >> 1)[:, None],
    )
    return _Source(*(part.clamp(-far, far).int() for part in parts))


def _places_of(row_BOO: Tensor, column_BOO: Tensor, width: int) -> Tensor:
    """Positions in B views of three planes of width x width: int32 or int64 [B, 3, O, O]. Overwrites the rows."""
    planes = 3 * len(row_BOO)
    wide = torch.int64 if planes * width * width >= 1 << 31 else torch.int32
    first = torch.arange(planes, device=row_BOO.device, dtype=wide) * (width * width)
    return row_BOO.mul_(width).add_(column_BOO)[:, None] + first.view(-1, 3, 1, 1)


def _nearest(x_B3OO: Tensor, source: _Source, fill: tuple[int, int, int]) -> Tensor:
    """What lies outside is read from a border of one pixel."""
    width = x_B3OO.shape[-1] + 2
    padded = _filled(x_B3OO, fill, width)
    padded[..., 1:-1, 1:-1] = x_B3OO
    row_BOO, column_BOO = (each.clamp_(0, width - 1) for each in source.rounded(0, 1))
    return _taken(padded.flatten(), _places_of(row_BOO, column_BOO, width))


def _bilinear(x_B3OO: Tensor, source: _Source, fill: tuple[int, int, int]) -> Tensor:
    """Four neighbours, with weights of 16 bits: 24 bits in all. The neighbours are the bytes of one int32.

    As in torchvision, what lies outside is black, and then, unless fill is black too, blended with fill by the share outside.
    """
    size_px = x_B3OO.shape[-1]
    width, one, unit = size_px + 3, 1 << _WEIGHT_BITS, 1 << _COORDINATE_BITS
    row_BOO, column_BOO = source.rounded(_COORDINATE_BITS, 2)
    down, right = row_BOO & (unit - 1), column_BOO & (unit - 1)
    share = None
    if any(fill):
        low, high = unit, (size_px + 2) * unit
        share = _weight(*(torch.minimum(each - low, high - each).clamp_(0, unit) for each in (row_BOO, column_BOO)))
    # Two pixels of border, so that both neighbours of what is far outside lie outside.
    row_BOO, column_BOO = (each.bitwise_right_shift_(_COORDINATE_BITS).clamp_(0, width - 1) for each in (row_BOO, column_BOO))
    padded = F.pad(x_B3OO, (2, 2, 2, 2)).int()
    two = torch.add(padded[..., :-1], padded[..., 1:], alpha=1 << 8)
    four = torch.add(two[..., :-1, :], two[..., 1:, :], alpha=1 << 16)
    four = _taken(four.flatten(), _places_of(row_BOO, column_BOO, width))
    both = _weight(down, right)
    down, right = (each << (_WEIGHT_BITS - _COORDINATE_BITS) for each in (down, right))
    weights = (one - down - right + both, right - both, down - both, both)
    total = (four & 255).mul_(weights[0][:, None])
    for weight in weights[1:]:
        four = four.bitwise_right_shift_(8)
        total = total.addcmul_(four & 255, weight[:, None])
    if share is None:
        return _from_range(total.float().mul_(1 / one).round_())
    colour_311 = torch.stack([x_B3OO.new_full((), value) for value in fill]).view(3, 1, 1).long() * one
    blended = share.long()[:, None] * (total.long() - colour_311) + colour_311 * one + one * one // 2
    return blended >> (2 * _WEIGHT_BITS)


def _weight(down: Tensor, right: Tensor) -> Tensor:
    """The product of two coordinates' fractions, int32 in 2**-16."""
    extra = 2 * _COORDINATE_BITS - _WEIGHT_BITS
    return (down * right).add_(1 << (extra - 1)).bitwise_right_shift_(extra)


def _edges(box_B4: Tensor, size_px: int) -> Tensor:
    """Boxes in whole pixels: int64 [B, 4]."""
    return (box_B4.long() * size_px + (1 << (BOX_BITS - 1))) >> BOX_BITS


def _areas(box_B4: Tensor, size_px: int) -> list[tuple[int, tuple[slice, slice]]]:
    """The samples whose boxes are not empty, and their rows and columns: for host loops on a CPU."""
    edges = enumerate(_edges(box_B4, size_px).tolist())
    return [(n, (slice(top, bottom), slice(left, right))) for n, (top, left, bottom, right) in edges if top < bottom]


def inside(box_B4: Tensor, size_px: int) -> Tensor:
    """Which pixels of views of size_px lie in a box of 2**-16 of the side: bool [B, O, O, 1]."""
    top, left, bottom, right = (edge_B.view(-1, 1, 1, 1) for edge_B in _edges(box_B4, size_px).unbind(1))
    along = torch.arange(size_px, device=box_B4.device)
    row, column = along.view(1, -1, 1, 1), along.view(1, 1, -1, 1)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def erase(pixels_BOO3: Tensor, box_B4: Tensor, noise_key_B: Tensor, fill: EraseFill) -> Tensor:
    """Fill the boxes: uint8 [B, O, O, 3] to the same. Noise is a hash of (key, pixel, channel)."""
    if eager_on_cpu(pixels_BOO3):
        x_B3OO = _to_change(pixels_BOO3)
        erase_boxes(x_B3OO, box_B4, noise_key_B, fill)
        return x_B3OO.permute(0, 2, 3, 1)
    size_px = pixels_BOO3.shape[1]
    filled = _mean_colour(pixels_BOO3) if fill == "mean" else _noise(noise_key_B, size_px)
    return torch.where(inside(box_B4, size_px), filled, pixels_BOO3)


def erase_boxes(x_B3OO: Tensor, box_B4: Tensor, noise_key_B: Tensor, fill: EraseFill) -> None:
    """`erase` in place: uint8 [B, 3, O, O] on a CPU."""
    x_BOO3, size_px = x_B3OO.permute(0, 2, 3, 1), x_B3OO.shape[-1]
    colour = _mean_colour(x_BOO3)
    for n, area in _areas(box_B4, size_px):
        x_BOO3[n][area] = colour if fill == "mean" else _noise(noise_key_B[n : n + 1], size_px)[0][area]


def _mean_colour(like: Tensor) -> Tensor:
    return torch.stack([like.new_full((), value) for value in MEAN])


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
    size_px = pixels_BOO3.shape[1]
    if eager_on_cpu(pixels_BOO3):
        done, mates = pixels_BOO3.clone(), mate_B.tolist()
        for n in (blend_B < 1 << BLEND_BITS).nonzero()[:, 0].tolist():
            done[n] = _blended(pixels_BOO3[n], pixels_BOO3[mates[n]], blend_B[n])
        for n, area in _areas(box_B4, size_px):
            done[n][area] = pixels_BOO3[mates[n]][area]
        return done
    other_BOO3 = pixels_BOO3.index_select(0, mate_B)
    blended = _blended(pixels_BOO3, other_BOO3, blend_B.view(-1, 1, 1, 1))
    return torch.where(inside(box_B4, size_px), other_BOO3, blended.to(torch.uint8))


def _blended(own: Tensor, other: Tensor, blend: Tensor) -> Tensor:
    return _bytes(torch.lerp(other.float(), own.float(), blend.float() * 2.0**-BLEND_BITS).add_(0.5))
