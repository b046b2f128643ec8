"""Descriptions of views say what was drawn, in the units of the settings."""

import numpy as np
import pytest
import torch

from udkd.augment.describe import AppliedOp, Described, Mixed, decode, described
from udkd.augment.mixing import partners
from udkd.augment.operations import inside
from udkd.augment.policies import FACTORS, Op, ViewOp, encode
from udkd.augment.views import ViewSpec, draw_views

RANGES = {
    **dict.fromkeys(FACTORS, (0.0, 7.9)),
    Op.HUE: (-0.5, 0.5),
    Op.BLUR: (0.1, 10),
    Op.ROTATE: (-179, 179),
    Op.SHEAR_X: (-4, 4),
    Op.SHEAR_Y: (-4, 4),
}
WHOLE = {Op.SOLARIZE: 256, Op.SOLARIZE_ADD: 255, Op.POSTERIZE: 8}


@pytest.mark.parametrize("op", RANGES, ids=lambda op: op.name)
def test_a_magnitude_in_its_units(op: Op) -> None:
    values = np.random.default_rng(int(op)).uniform(*RANGES[op], 200)
    pairs = encode(op, values, 224).tolist()
    found = np.array([decode(op, *pair, 224) for pair in pairs])
    # A blur of 10 pixels is stored with nine bits.
    assert np.abs(found / values - 1).max() < 2e-3 if op == Op.BLUR else np.abs(found - values).max() < 2e-3


@pytest.mark.parametrize("op", [*WHOLE, Op.TRANSLATE_X, Op.TRANSLATE_Y], ids=lambda op: op.name)
def test_whole_magnitudes_are_exact(op: Op) -> None:
    size_px = 224
    whole = np.arange(WHOLE[op] + 1.0) if op in WHOLE else np.arange(-size_px, size_px + 1.0)
    values = whole if op in WHOLE else (whole + 0.25 * np.sign(whole)).clip(-size_px, size_px) / size_px
    pairs = encode(op, values, size_px).tolist()
    assert [decode(op, *pair, size_px) for pair in pairs] == whole.tolist()


def test_an_operation_without_a_magnitude() -> None:
    for op in (Op.INVERT, Op.AUTOCONTRAST, Op.EQUALIZE, Op.GRAYSCALE):
        assert decode(op, 0, 0, 64) is None
        assert str(AppliedOp(op=op.name.lower(), value=None)) == op.name.lower()


def test_every_operation_has_words() -> None:
    for op in Op:
        if op != Op.IDENTITY:
            value = decode(op, 1 << 12, 1 << 12, 64)
            assert str(AppliedOp(op=op.name.lower(), value=value)).startswith(op.name.lower())


def test_words() -> None:
    view = Described(
        id=3,
        crop=(0.1, 0.0, 0.5, 0.8),
        flip=True,
        ops=(AppliedOp(op="rotate", value=-12.0), AppliedOp(op="equalize", value=None), AppliedOp(op="contrast", value=1.3)),
        erased=(4, 5, 20, 30),
        mixed=Mixed(partner=812, share=0.62, box=(0, 0, 10, 10)),
    )
    assert view.words() == ["crop 40 %", "flipped", "rotate -12.0°", "equalize", "contrast × 1.30", "erased 30 × 20 px"]
    assert view.mixed_words() == ["CutMix: 0.620 id 3", "+ 0.380 id 812"]


def test_a_view_as_it_was_drawn() -> None:
    ids, size_px = np.arange(64), 96
    sizes = np.tile(np.array([[375, 500, 192, 256]]), (64, 1))
    ops = (ViewOp(op="rotate", low=10, high=10), ViewOp(op="invert", prob=0.5))
    spec = ViewSpec(size_px=size_px, ops=ops, erase_prob=0.5, mixup=0.5, cutmix=0.5)
    views = draw_views(spec, 0, 2, ids, sizes, partners(0, 2, ids, 64))
    assert views.erase_box is not None
    assert views.mix_box is not None
    assert views.share is not None
    found = described(spec, views, ids, sizes, size_px)
    kinds = set()
    for n, view in enumerate(found):
        assert view.ops[0] == AppliedOp(op="rotate", value=pytest.approx(10, abs=1e-3))
        assert [each.op for each in view.ops[1:]] in ([], ["invert"])
        window = views.window[n] / 65536
        assert view.crop == pytest.approx((window[0] / 192, window[1] / 256, window[2] / 192, window[3] / 256))
        assert view.mixed is not None
        assert found[view.mixed.partner].mixed == Mixed(partner=n, share=view.mixed.share, box=view.mixed.box)
        for box, drawn in ((view.erased, views.erase_box), (view.mixed.box, views.mix_box)):
            pixels = inside(torch.from_numpy(drawn[n : n + 1]), size_px)[0, :, :, 0]
            expected = torch.zeros(size_px, size_px, dtype=torch.bool)
            if box is not None:
                expected[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
            assert torch.equal(pixels, expected)
        kinds |= {word.partition(":")[0] for word in view.mixed_words()[:1]}
    assert kinds == {"MixUp", "CutMix"}
    assert {view.erased is None for view in found} == {True, False}


def test_jitter_in_float32_and_its_order() -> None:
    ids = np.arange(20)
    sizes = np.full((20, 4), 64)
    spec = ViewSpec(size_px=32, brightness=0.4, saturation=0.2)
    views = draw_views(spec, 0, 0, ids, sizes)
    orders = {tuple(op.op for op in view.ops) for view in described(spec, views, ids, sizes, 32)}
    assert orders == {("brightness", "saturation"), ("saturation", "brightness")}, "contrast has no strength"


def test_a_sample_without_a_partner_is_not_mixed() -> None:
    ids, sizes = np.arange(1), np.full((1, 4), 64)
    spec = ViewSpec(size_px=32, cutmix=1.0)
    (view,) = described(spec, draw_views(spec, 0, 0, ids, sizes, ids), ids, sizes, 32)
    assert view.mixed_words() == ["not mixed: without a partner"]
