"""Rows of operations: torchvision's, timm's and DeiT III's own tables against what is drawn, with all frequencies."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.autoaugment import AutoAugment, RandAugment, TrivialAugmentWide

from tests.augment.distributions import assert_frequencies, assert_same_distribution
from udkd.augment.policies import FACTORS, MAX_OPS, MAX_POLICY_OPS, WARPS, Op, OpName, ViewOp
from udkd.augment.views import Views, ViewSpec, draw_views
from udkd.utils.errors import ConfigError

COUNT = 60_000
Outcome = tuple[Op, float]
"""An operation and its magnitude: a factor, pixels, degrees, a tangent, bits, a threshold."""

TORCHVISION = {op.name.replace("_", "").lower(): op for op in Op} | {"color": Op.SATURATION}


def drawn(spec: ViewSpec, count: int = COUNT, seed: int = 3, view: int = 1) -> Views:
    return draw_views(spec, seed, view, np.arange(count), np.tile([9, 9, 9, 9], (count, 1)), np.arange(count))


def rows(spec: ViewSpec, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """Operations [N, R] and their magnitudes in their own units [N, R]."""
    views = drawn(spec, count)
    assert views.op is not None
    assert views.magnitude is not None
    assert views.op.dtype == np.int8
    assert views.magnitude.dtype == np.int32
    return views.op, decoded(views.op, views.magnitude, spec.size_px)


def decoded(op: np.ndarray, magnitude: np.ndarray, size_px: int) -> np.ndarray:
    first, second = magnitude[..., 0].astype(float), magnitude[..., 1].astype(float)
    value = first.copy()
    value[np.isin(op, FACTORS)] /= 1 << 13
    value = np.where(op == Op.HUE, first / (1 << 12), value)
    value = np.where(op == Op.ROTATE, np.degrees(np.arctan2(second, first)), value)
    value = np.where((op == Op.SHEAR_X) | (op == Op.SHEAR_Y), first / (1 << 16), value)
    value = np.where((op == Op.TRANSLATE_X) | (op == Op.TRANSLATE_Y), np.floor(first * size_px / (1 << 16) + 0.5), value)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(op == Op.BLUR, np.sqrt(math.log2(math.e) / 2 / (first / (1 << 16))), value)
    assert not second[op != Op.ROTATE].any()
    return value


ROOM = dict.fromkeys(FACTORS, 2**-14) | {Op.ROTATE: 2e-3, Op.SHEAR_X: 2**-16, Op.SHEAR_Y: 2**-16}


def numbered(op: np.ndarray, value: np.ndarray, outcomes: Sequence[Outcome], room: dict[Op, float] = ROOM) -> np.ndarray:
    """Which of `outcomes` each (op, value) is, whose magnitudes may differ by `room`."""
    found = np.full(op.shape, -1)
    for n, (other_op, other_value) in enumerate(outcomes):
        found[(op == other_op) & (np.abs(value - other_value) <= room.get(other_op, 0) + 1e-9)] = n
    missing = found < 0
    assert not missing.any(), f"not among the outcomes: {op[missing][:5]}, {value[missing][:5]}"
    return found


def torchvisions(space: dict[str, Any], name: str, level: int, size_px: int) -> dict[Outcome, float]:
    """What torchvision does for an operation at a level, and how probable each sign is."""
    op = TORCHVISION[name.lower()]
    table, signed = space[name]
    value = float(table[level]) if table.ndim else 0.0
    values = [value, -value] if signed else [value]
    if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        # Both stand for a shift by all of the side and more. torch.linspace(0, 32, 31)[15] is 15.999999, and so torchvision
        # moves that level of TrivialAugmentWide by 15 px: it is the only one near a whole number in any of the sizes here.
        near = round(value) if abs(value - round(value)) < 1e-5 else int(value)
        assert near == int(value) or (level, near) == (15, 16)
        values = [min(max(math.copysign(near, each), -size_px), size_px) for each in values]
    elif op in FACTORS:
        values = [1 + each for each in values]
    elif op == Op.SOLARIZE:
        values = [math.ceil(value)]
    outcomes: dict[Outcome, float] = {}
    for each in values:
        outcomes[op, each + 0.0] = outcomes.get((op, each + 0.0), 0) + 1 / len(values)
    return outcomes


def uniform_choice(space: dict[str, Any], levels: Sequence[int], size_px: int) -> dict[Outcome, float]:
    chances: dict[Outcome, float] = {}
    for name, level in product(space, levels):
        for outcome, chance in torchvisions(space, name, level, size_px).items():
            chances[outcome] = chances.get(outcome, 0) + chance / len(space) / len(levels)
    return chances


@pytest.mark.parametrize("size_px", [8, 32, 224, 331, 600])
def test_every_level_of_rand_augment_is_torchvisions(size_px: int) -> None:
    """All 31 levels, both signs: operations and magnitudes."""
    space = RandAugment()._augmentation_space(31, (size_px, size_px))
    for level in range(31):
        chances = uniform_choice(space, [level], size_px)
        spec = ViewSpec(policy="rand_augment", policy_ops=1, policy_magnitude=level, size_px=size_px)
        found = numbered(*rows(spec, 1_500), list(chances))
        assert len(np.unique(found)) == len(chances), "each operation and sign is drawn"


def test_torchvisions_other_implementation_has_the_same_levels() -> None:
    """The tables of v1 are used here; v2's differ in float32's last bit, which moves three thresholds of solarize by one."""
    for ours, other in (
        (RandAugment(), v2.RandAugment),
        (AutoAugment(), v2.AutoAugment),
        (TrivialAugmentWide(), v2.TrivialAugmentWide),
    ):
        arguments = (31,) if isinstance(ours, TrivialAugmentWide) else (31, (224, 224))
        space = ours._augmentation_space(*arguments)
        assert list(space) == list(other._AUGMENTATION_SPACE)
        for name, (table, signed) in space.items():
            make, also_signed = other._AUGMENTATION_SPACE[name]
            values = make(31, 224, 224)
            assert signed == also_signed
            assert torch.allclose(
                table.double(),
                (values * 255 if name == "Solarize" else values).double() if values is not None else table.double(),
            )


def test_rand_augments_outcomes_are_torchvisions() -> None:
    """Two independent operations, with repetition."""
    torchvision = RandAugment()
    chances = uniform_choice(torchvision._augmentation_space(31, (64, 64)), [torchvision.magnitude], 64)
    found = numbered(*rows(ViewSpec(policy="rand_augment", size_px=64)), list(chances))
    assert found.shape == (COUNT, torchvision.num_ops)
    single = np.array(list(chances.values()))
    assert_frequencies(found[:, 0] * len(chances) + found[:, 1], np.outer(single, single).ravel())


@pytest.mark.parametrize("size_px", [16, 64, 224])
def test_trivial_augments_outcomes_are_torchvisions(size_px: int) -> None:
    """All levels as probable; translations by up to 32 px whatever the size."""
    space = TrivialAugmentWide()._augmentation_space(31)
    chances = uniform_choice(space, range(31), size_px)
    found = numbered(*rows(ViewSpec(policy="trivial_augment_wide", size_px=size_px)), list(chances))
    assert found.shape == (COUNT, 1)
    assert_frequencies(found[:, 0], np.array(list(chances.values())))


@pytest.mark.parametrize("size_px", [48, 224])
def test_auto_augments_outcomes_are_torchvisions(size_px: int) -> None:
    """Sub-policies, probabilities, levels and signs: the chance of each pair of operations."""
    torchvision = AutoAugment()
    space = torchvision._augmentation_space(10, (size_px, size_px))
    chances: dict[tuple[Outcome, Outcome], float] = {}
    for policy in torchvision.policies:
        steps = []
        for name, prob, level in policy:
            outcomes = {outcome: prob * chance for outcome, chance in torchvisions(space, name, level or 0, size_px).items()}
            steps.append(outcomes | {(Op.IDENTITY, 0.0): 1 - prob})
        for (first, p), (second, q) in product(steps[0].items(), steps[1].items()):
            chances[first, second] = chances.get((first, second), 0) + p * q / len(torchvision.policies)
    singles = sorted({outcome for pair in chances for outcome in pair})
    expected = np.zeros((len(singles), len(singles)))
    for (first, second), chance in chances.items():
        expected[singles.index(first), singles.index(second)] = chance
    found = numbered(*rows(ViewSpec(policy="auto_augment", size_px=size_px)), singles)
    assert_frequencies(found[:, 0] * len(singles) + found[:, 1], expected.ravel())


# timm.


def timms_op(name: str) -> Op:
    return TORCHVISION[name.replace("Increasing", "").replace("Rel", "").lower()]


def timms_value(op: Op, value: float, size_px: int) -> float:
    return float(math.trunc(round(value * size_px, 6))) if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y) else float(value)


@pytest.mark.parametrize(("magnitude", "size_px"), [(9, 224), (10, 64), (7, 48), (0, 64), (2, 100)])
def test_timms_rand_augment_without_spread(magnitude: int, size_px: int) -> None:
    """The chance of each pair; timm's translations are not whole pixels, these are."""
    auto_augment = pytest.importorskip("timm.data.auto_augment")
    theirs = auto_augment.rand_augment_transform(f"rand-m{magnitude}-inc1", {})
    assert [op.name for op in theirs.ops] == auto_augment._RAND_INCREASING_TRANSFORMS
    chances: dict[Outcome, float] = {(Op.IDENTITY, 0.0): 0.0}
    state = random.getstate()
    random.seed(1)
    for op in theirs.ops:
        assert (op.prob, op.magnitude, op.magnitude_std, op.magnitude_max) == (0.5, magnitude, 0, None)
        code = timms_op(op.name)
        values = {0.0}
        if op.level_fn is not None:  # a random sign
            values = {timms_value(code, op.level_fn(magnitude, op.hparams)[0], size_px) + 0.0 for _ in range(50)}
        chances[Op.IDENTITY, 0.0] += (1 - op.prob) / len(theirs.ops)
        chances |= {(code, value): op.prob / len(theirs.ops) / len(values) for value in values}
    random.setstate(state)
    spec = ViewSpec(policy="timm_rand_augment", policy_magnitude=magnitude, size_px=size_px)
    found = numbered(*rows(spec), list(chances))
    assert found.shape == (COUNT, theirs.num_layers)
    single = np.array(list(chances.values()))
    assert_frequencies(found[:, 0] * len(chances) + found[:, 1], np.outer(single, single).ravel())


@pytest.mark.parametrize(("magnitude", "spread"), [(9, 0.5), (5, 3.0), (10, 1.0)])
def test_timms_spread(magnitude: int, spread: float) -> None:
    """Magnitudes of rand-mM-mstdS-inc1: normal, clipped to 0 and 10. Ours is the sum of twelve numbers, 0.003 from it."""
    auto_augment = pytest.importorskip("timm.data.auto_augment")
    theirs = auto_augment.rand_augment_transform(f"rand-m{magnitude}-mstd{spread}-inc1", {})
    op, value = rows(ViewSpec(policy="timm_rand_augment", policy_magnitude=magnitude, policy_spread=spread))
    state = random.getstate()
    random.seed(2)
    seen = 0
    for each in theirs.ops:
        code = timms_op(each.name)
        if each.level_fn is None:
            continue
        drawn_by_timm: list[float] = []
        each.prob, each.aug_fn = 1.0, lambda _, argument, into=drawn_by_timm, **__: into.append(argument)
        for _ in range(3_000):
            each(None)
        wanted = np.array([timms_value(code, argument, 224) for argument in drawn_by_timm])
        # The twelve-number sum and the rounded magnitudes: compared in steps far above their errors.
        step = {Op.ROTATE: 0.02, Op.SHEAR_X: 1e-3, Op.SHEAR_Y: 1e-3}.get(code, 1e-3 if code in FACTORS else 1.0)
        assert_same_distribution(np.rint(value[op == code] / step), np.rint(wanted / step), each.name)
        seen += 1
    random.setstate(state)
    assert seen == 12


def test_the_spread_is_normal_and_clipped() -> None:
    """torchvision's RandAugment with a spread, which torchvision does not have: level and spread are of 30."""
    op, value = rows(ViewSpec(policy="rand_augment", policy_magnitude=15, policy_spread=2.0))
    level = np.abs(value[op == Op.ROTATE])
    assert abs(level.mean() - 15) < 5 * 2 / len(level) ** 0.5
    assert abs(level.std() - 2) < 5 * 2 / (2 * len(level)) ** 0.5
    assert_same_distribution(level, np.random.default_rng(0).normal(15, 2, 100_000))
    op, value = rows(ViewSpec(policy="rand_augment", policy_magnitude=29, policy_spread=100.0))
    level = np.abs(value[op == Op.ROTATE])
    assert level.max() <= 30 + 1e-3
    assert (level < 1e-3).mean() == pytest.approx(0.386, abs=0.02)  # Phi(-0.29)
    assert (level > 30 - 1e-3).mean() == pytest.approx(0.496, abs=0.02)


def test_three_augment_is_deit_iiis() -> None:
    """RandomChoice([grayscale, solarize (Pillow's threshold, 128), GaussianBlur(radius uniform from 0.1 to 2)])."""
    op, value = rows(ViewSpec(policy="three_augment"))
    kinds = [Op.GRAYSCALE, Op.SOLARIZE, Op.BLUR]
    assert_frequencies(
        numbered(op, value * (op == Op.SOLARIZE), [(k, 128.0 * (k == Op.SOLARIZE)) for k in kinds])[:, 0], np.full(3, 1 / 3)
    )
    sigma = value[op == Op.BLUR]
    assert sigma.min() > 0.0999
    assert sigma.max() < 2.0001
    assert_same_distribution(sigma, np.linspace(0.1, 2, len(sigma)))


# Colour jitter in integers.

STRENGTHS = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.1, "hue": 0.2}
NAMES = tuple(STRENGTHS)


@pytest.mark.parametrize("used", [NAMES, ("brightness", "hue"), ("saturation",), ("contrast", "saturation", "hue"), NAMES[:3]])
def test_jitter_is_torchvisions(used: tuple[str, ...]) -> None:
    """Ranges, and every order as probable."""
    strengths = {name: STRENGTHS[name] for name in used}
    torchvision = v2.ColorJitter(**strengths)
    op, value = rows(ViewSpec(jitter="uint8", **strengths))  # type: ignore[arg-type]
    codes = [Op[name.upper()] for name in used]
    orders = [list(order) for order in permutations(codes)]
    found = np.argmax((op[:, None] == np.array(orders)).all(-1), axis=1)
    assert np.array_equal(np.array(orders)[found], op)
    assert_frequencies(found, np.full(len(orders), 1 / len(orders)))
    for name, code in zip(used, codes, strict=True):
        low, high = getattr(torchvision, name)
        factor = value[op == code]
        assert len(factor) == COUNT
        assert low - 2**-13 <= factor.min()
        assert factor.max() <= high + 2**-13
        assert_same_distribution(factor, np.linspace(low, high, COUNT), name)


def test_jitter_in_integers_draws_the_numbers_of_the_float_jitter() -> None:
    """Order and factors, also beside a hue."""
    strengths = {"brightness": 0.4, "contrast": 0.3, "saturation": 1.2}
    floats = drawn(ViewSpec(**strengths), 3_000)  # type: ignore[arg-type]
    for hue in (0.0, 0.1):
        op, value = rows(ViewSpec(jitter="uint8", hue=hue, **strengths), 3_000)  # type: ignore[arg-type]
        keep = op != Op.HUE
        assert np.array_equal(op[keep].reshape(-1, 3) - 1, floats.kind)
        assert np.abs(value[keep].reshape(-1, 3) - floats.factor).max() <= 2**-13


# Operations by name.

LARGEST: dict[str, tuple[float, float]] = (
    dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), (0.0, 7.9))
    | {"hue": (-0.5, 0.5), "solarize": (0, 256), "solarize_add": (0, 255), "posterize": (0, 8), "blur": (0.1, 10.0)}
    | {"rotate": (-180, 180), "shear_x": (-4, 4), "shear_y": (-4, 4), "translate_x": (-1, 1), "translate_y": (-1, 1)}
)


@pytest.mark.parametrize("name", get_args(OpName))
def test_an_operation_by_name(name: OpName) -> None:
    """Its probability, and its magnitude uniform from low to high; the largest range fits in the row's integers."""
    low, high = LARGEST.get(name, (0.0, 0.0))
    op, value = rows(ViewSpec(size_px=200, ops=(ViewOp(op=name, prob=0.3, low=low, high=high),)))
    code = Op[name.upper()]
    assert_frequencies((op[:, 0] == code).astype(int), np.array([0.7, 0.3]))
    assert set(np.unique(op)) == {Op.IDENTITY, code}
    got = value[op == code]
    scale = 200 if code in (Op.TRANSLATE_X, Op.TRANSLATE_Y) else 1
    steps = {Op.SOLARIZE: math.ceil, Op.SOLARIZE_ADD: round, Op.POSTERIZE: round, Op.TRANSLATE_X: int, Op.TRANSLATE_Y: int}
    rounded = steps.get(code, float)
    wanted = np.array([rounded(each * scale) for each in np.linspace(low, high, 50_000)])
    if code == Op.ROTATE:  # both ends are the same angle
        got, wanted = np.abs(got), np.abs(wanted)
    assert_same_distribution(
        np.rint(got * 1e4) if code in FACTORS else got, np.rint(wanted * 1e4) if code in FACTORS else wanted
    )
    if low == high:
        assert not value.any()


def test_a_fixed_magnitude_is_exact() -> None:
    fixed = {
        "solarize": 128,
        "posterize": 4,
        "brightness": 1.5,
        "rotate": 90,
        "hue": -0.25,
        "translate_x": 0.25,
        "shear_y": 0.5,
    }
    ops = tuple(ViewOp(op=name, low=each, high=each) for name, each in fixed.items())  # type: ignore[arg-type]
    op, value = rows(ViewSpec(size_px=48, ops=ops), 100)
    assert op.tolist() == [[Op[name.upper()] for name in fixed]] * 100
    assert np.allclose(value, [128, 4, 1.5, 90, -0.25, 12, 0.5], atol=1e-9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"op": "color"}, "op is 'color'; expected one of brightness, contrast,"),
        ({"op": "identity"}, "op is 'identity'; expected one of"),
        ({"op": "invert", "prob": 1.01}, "prob of invert is 1.01; expected a probability, 0 to 1"),
        ({"op": "invert", "prob": float("nan")}, "prob of invert is nan; expected a probability"),
        ({"op": "invert", "prob": "often"}, "prob of invert is 'often'; expected a number"),
        ({"op": "invert", "high": 1.0}, "invert has low 0.0 and high 1.0; expected neither"),
        ({"op": "blur"}, "blur has low 0.0 and high 0.0; expected low <= high from 0.1 to 10.0"),
        ({"op": "rotate", "low": 3, "high": -3}, "rotate has low 3 and high -3; expected low <= high from -180 to 180"),
        ({"op": "brightness", "low": 0.5, "high": float("nan")}, "brightness has low 0.5 and high nan; expected low <= high"),
        *(
            ({"op": name, "low": low, "high": high + 0.01}, f"{name} has low {low} and high {high + 0.01}; expected")
            for name, (low, high) in LARGEST.items()
        ),
    ],
)
def test_an_impossible_operation_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ViewOp(**values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# All of them.

FULL = ViewSpec(
    policy="timm_rand_augment",
    policy_ops=MAX_POLICY_OPS,
    policy_spread=1.0,
    jitter="uint8",
    brightness=0.4,
    saturation=0.4,
    hue=0.1,
    ops=tuple(
        ViewOp(op=n, prob=0.5, low=LARGEST.get(n, (0, 0))[0], high=LARGEST.get(n, (0, 0))[1])
        for n in get_args(OpName)[:MAX_OPS]
    ),
)
SPECS = {
    "full": FULL,
    "uint8 jitter": replace(FULL, policy="none", ops=()),
    **{policy: ViewSpec(policy=policy) for policy in ("rand_augment", "trivial_augment_wide", "auto_augment", "three_augment")},
}


@pytest.mark.parametrize("name", SPECS)
def test_row_ops_are_what_rows_hold(name: str) -> None:
    spec = SPECS[name]
    op, _ = rows(spec, 40_000)
    assert op.shape[1] == len(spec.row_ops)
    for column, allowed in zip(op.T, spec.row_ops, strict=True):
        assert set(np.unique(column)) - {Op.IDENTITY} == set(allowed)


@pytest.mark.parametrize("name", SPECS)
def test_a_samples_operations_depend_on_nothing_else(name: str) -> None:
    """Neither on the other samples drawn, nor on their order: also where the samples are drawn in several chunks."""
    full = drawn(SPECS[name], 40_000)
    ids = np.random.default_rng(0).permutation(40_000)[:20_000]
    part = draw_views(SPECS[name], 3, 1, ids, np.tile([9, 9, 9, 9], (len(ids), 1)))
    for field in ("op", "magnitude"):
        assert np.array_equal(getattr(part, field), getattr(full, field)[ids])
    assert len(drawn(SPECS[name], 0)) == 0
    for seed, view in ((4, 1), (3, 2)):
        other = drawn(SPECS[name], 500, seed, view)
        assert not np.array_equal(other.op, full.op[:500])  # type: ignore[index]


def test_rows_are_independent() -> None:
    """Of each other, of the crop and of the flip."""
    count = 20_000
    op, value = rows(FULL, count)
    views = drawn(FULL, count)
    columns = [*(op == Op.IDENTITY).T[:MAX_POLICY_OPS], *(op[:, :MAX_POLICY_OPS] == Op.ROTATE).T, *(op[:, -MAX_OPS:] != 0).T]
    columns += [*value[:, :2].T, *value[:, -MAX_OPS:].T, views.flip, views.window[:, 0] + views.window[:, 2]]
    table = np.corrcoef([column.astype(float) for column in columns if column.std() > 0])
    pairs = np.abs(np.triu(table, 1))
    # An operation and its own magnitude, or its own absence, are correlated; nothing else is.
    assert np.median(pairs[pairs > 0]) < 2 / count**0.5
    applied = (op[:, -MAX_OPS:] != 0).astype(float)
    assert np.abs(np.triu(np.corrcoef(applied.T), 1)).max() < 5 / count**0.5


def test_another_size_shows_the_same() -> None:
    """Rotations, shears and factors do not depend on the size, and translations are the same fraction within a pixel."""
    spec = replace(FULL, ops=tuple(replace(each, prob=1.0) for each in FULL.ops[-5:]), policy="rand_augment", policy_ops=3)
    small, large = drawn(replace(spec, size_px=50), 5_000), drawn(replace(spec, size_px=75), 5_000)
    assert small.op is not None
    assert large.op is not None
    assert np.array_equal(small.op, large.op)
    gap = np.abs(small.magnitude[..., 0] - large.magnitude[..., 0])  # type: ignore[index]
    moved = np.isin(small.op, WARPS[3:])
    assert not gap[~moved].any()
    assert 0 < gap[moved].max() <= (1 << 16) / 50 + 1
