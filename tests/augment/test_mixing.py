"""MixUp and CutMix as numbers: pairs, shares and boxes, against torchvision's and timm's distributions."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from tests.augment.distributions import assert_frequencies, assert_same_distribution
from tests.augment.test_erasing import in_pixels
from udkd.augment import mixing
from udkd.augment.mixing import BLEND_BITS, draw_mixing, pairs_together, partners
from udkd.augment.views import ViewSpec, draw_views
from udkd.utils.errors import ConfigError
from udkd.utils.rng import Stream, key, permutation

ALPHAS = [0.1, 0.2, 0.8, 1.0, 2.0]
ID_SETS = st.sets(st.integers(0, 60), max_size=40).map(sorted)


# Pairs.


@given(ids=ID_SETS, seed=st.integers(0, 2**63 - 1), view=st.integers(0, 400), shuffle=st.randoms(use_true_random=False))
def test_partners_are_a_perfect_matching(ids: list[int], seed: int, view: int, shuffle: Any) -> None:
    """An involution on the ids, which leaves out one of an odd number; the others are their own; the order does not matter."""
    partner = partners(seed, view, np.array(ids, np.int64), 61)
    assert partner.dtype == np.int64
    assert np.array_equal(partner[partner], np.arange(61))
    mixed = {int(n) for n in np.flatnonzero(partner != np.arange(61))}
    assert mixed <= set(ids)
    assert len(mixed) == len(ids) // 2 * 2
    shuffled = list(ids)
    shuffle.shuffle(shuffled)
    assert np.array_equal(partners(seed, view, np.array(shuffled, np.int64), 61), partner)


def test_partners_are_random() -> None:
    """Another view or seed is another matching; each pair is as probable; every id is left out as often."""
    ids = np.arange(5)
    count = 3_000
    drawn = np.array([partners(7, view, ids, 5) for view in range(count)])
    assert_frequencies((drawn == ids).argmax(1), np.full(5, 1 / 5))
    assert_frequencies(drawn[:, 0], np.full(5, 1 / 5))
    assert len({row.tobytes() for row in drawn}) == 15, "all matchings of five"
    many = [partners(seed, view, np.arange(1_000), 1_000) for seed, view in ((0, 0), (0, 1), (1, 0))]
    assert all((one == other).sum() < 10 for one, other in pairwise(many))


@pytest.mark.parametrize("ids", [[], [4], [2, 4], [0, 2, 4]])
def test_few_ids(ids: list[int]) -> None:
    partner = partners(0, 0, np.array(ids, np.int64), 5)
    assert (partner != np.arange(5)).sum() == len(ids) // 2 * 2
    order = np.array(ids, np.int64)
    together = pairs_together(order, partner)
    assert sorted(together.tolist()) == ids
    if len(ids) == 2:
        assert partner.tolist() == [0, 1, 4, 3, 2]


@given(ids=ID_SETS, seed=st.integers(0, 99), half=st.integers(1, 8))
def test_pairs_together(ids: list[int], seed: int, half: int) -> None:
    """A permutation in which batches of an even size hold pairs, and the one without a partner is last."""
    array = np.array(ids, np.int64)
    partner = partners(seed, 0, array, 61)
    order = permutation(array, seed, Stream.SAMPLE_ORDER, 0)
    together = pairs_together(order, partner)
    assert sorted(together.tolist()) == ids
    for first in range(0, len(ids), 2 * half):
        batch = together[first : first + 2 * half]
        assert set(partner[batch].tolist()) == set(batch.tolist())
    if len(ids) % 2:
        assert partner[together[-1]] == together[-1]
    assert np.array_equal(pairs_together(order, partner), together), "a resumed run has the same order"
    # A pair stands where the first of the two stood, and keeps their order.
    firsts = together[: len(ids) // 2 * 2 : 2].tolist()
    place = {int(n): k for k, n in enumerate(order)}
    assert [place[n] for n in firsts] == sorted(place[n] for n in firsts)
    assert all(place[n] < place[int(partner[n])] for n in firsts)


def test_half_a_pair_is_refused() -> None:
    ids = np.arange(10)
    partner = partners(0, 0, ids, 10)
    with pytest.raises(ConfigError, match=f"sample 3, which is mixed with sample {partner[3]}, and not the latter; expected"):
        pairs_together(ids[ids != partner[3]], partner)


def test_pairs_together_of_many() -> None:
    """Batches stay random: the places of an epoch's order keep their rank, up to the partners that are pulled forward."""
    ids = np.arange(20_001)
    order = permutation(ids, 0, Stream.SAMPLE_ORDER, 1)
    together = pairs_together(order, partners(0, 1, ids, len(ids)))
    assert np.array_equal(np.sort(together), ids)
    assert abs(np.corrcoef(together[:-1], np.arange(20_000))[0, 1]) < 5 / 20_000**0.5


# Shares and boxes.


def drawn(count: int = 40_000, size_px: int = 224, **settings: Any) -> dict[str, np.ndarray]:
    values = {"mixup": 0.0, "cutmix": 0.0, "prob": 1.0, "switch_prob": 0.5} | settings
    mixing_of = draw_mixing(key(5, 2, np.arange(count)), size_px=size_px, **values)
    assert {name: value.dtype for name, value in mixing_of.items()} == {
        "blend": np.int32,
        "mix_box": np.int32,
        "share": np.float32,
    }
    return {**mixing_of, "box": in_pixels(mixing_of["mix_box"], size_px)}


@pytest.mark.parametrize("alpha", ALPHAS)
def test_mixups_share_is_beta(alpha: float) -> None:
    """Against NumPy's Beta(alpha, alpha), and torchvision's; both rounded to the multiples that are drawn."""
    ours = drawn(mixup=alpha)
    one = 1 << BLEND_BITS
    assert ((ours["blend"] >= 0) & (ours["blend"] <= one)).all()
    assert np.array_equal(ours["share"], (ours["blend"] / one).astype(np.float32)), "the label's share is the pixels'"
    assert not ours["mix_box"].any()
    theirs = np.random.default_rng(0).beta(alpha, alpha, 200_000)
    assert_same_distribution(ours["blend"], np.rint(theirs * one), alpha)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torchvisions = v2.MixUp(alpha=alpha, num_classes=2)._dist.sample((20_000,))[:, 0].double().numpy()
    assert_same_distribution(ours["blend"], np.rint(torchvisions * one), alpha)


def test_a_tiny_alpha_mixes_almost_nothing() -> None:
    """Beta's mass is at 0 and 1; logarithms far below the smallest float64 must not turn into a half."""
    for alpha in (1e-3, 1e-6, 1e-308, 5e-324):
        share = drawn(10_000, mixup=alpha)["share"]
        assert ((share < 0.001) | (share > 0.999)).mean() > 0.95
        assert abs((share > 0.5).mean() - 0.5) < 0.025


def test_betas_rejection_almost_never_ends_without_a_value() -> None:
    """Where it does, the share is a half; alpha = 2 accepts one try in six."""
    share = mixing._beta(key(0, 0, np.arange(200_000)), 2.0)
    assert (share == 0.5).sum() < 10


@pytest.mark.parametrize("size_px", [7, 32, 224])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_cutmixs_boxes_are_torchvisions(size_px: int, alpha: float) -> None:
    """Their place, their size, and the exact area that is left."""
    ours = drawn(cutmix=alpha, size_px=size_px)
    top, left, bottom, right = ours["box"].T
    for low, high in ((top, bottom), (left, right)):
        assert (low >= 0).all()
        assert (low <= high).all()
        assert (high <= size_px).all()
    assert (ours["blend"] == 1 << BLEND_BITS).all()
    area = (bottom - top) * (right - left)
    assert np.array_equal(ours["share"], (1 - area / size_px**2).astype(np.float32))
    theirs = v2.CutMix(alpha=alpha, num_classes=2)
    images = [torch.empty(2, 3, size_px, size_px, device="meta")]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [theirs.make_params(images) for _ in range(2_500)]
    boxes = np.array([p["box"] for p in params])  # left, top, right, bottom
    for one, other in ((left, 0), (top, 1), (right, 2), (bottom, 3)):
        assert_same_distribution(one, boxes[:, other], other)
    lam = np.array([p["lam_adjusted"] for p in params])
    assert_same_distribution(np.rint(ours["share"] * size_px**2), np.rint(lam * size_px**2))


def test_cutmixs_boxes_are_timms_up_to_an_odd_pixel() -> None:
    """timm's rand_bbox makes boxes of an odd side one pixel longer than torchvision's; lam is corrected by the exact area."""
    timm = pytest.importorskip("timm.data.mixup")
    ours = drawn(cutmix=1.0)
    state = np.random.get_state()
    np.random.seed(0)
    theirs = [timm.cutmix_bbox_and_lam((3, 224, 224), np.random.beta(1.0, 1.0)) for _ in range(2_500)]
    np.random.set_state(state)
    assert_same_distribution(ours["share"], np.array([lam for _, lam in theirs]))
    (top, bottom, left, right), lam = theirs[0]
    assert lam == 1 - (bottom - top) * (right - left) / 224**2
    assert_same_distribution(ours["box"][:, 0], np.array([box[0] for box, _ in theirs]))


def test_switch_and_probability_are_timms() -> None:
    """Mixup's _params_per_elem: neither, MixUp and CutMix, each with the share of its own alpha."""
    timm = pytest.importorskip("timm.data.mixup")
    settings = {"mixup": 0.8, "cutmix": 0.3, "prob": 0.7, "switch_prob": 0.3}
    mixer = timm.Mixup(mixup_alpha=0.8, cutmix_alpha=0.3, prob=0.7, switch_prob=0.3)
    state = np.random.get_state()
    np.random.seed(0)
    lam, cuts = mixer._params_per_elem(40_000)
    np.random.set_state(state)
    ours = drawn(**settings)
    one = 1 << BLEND_BITS
    blended = ours["blend"] < one
    cut = (ours["box"][:, 2] > ours["box"][:, 0]) & (ours["box"][:, 3] > ours["box"][:, 1])
    assert not (blended & cut).any()
    assert ((ours["share"] == 1) == ~(blended | cut)).all()
    rounded = np.rint(lam * one)
    assert_same_distribution(ours["blend"][blended], rounded[(rounded < one) & ~cuts])
    assert abs(blended.mean() - ((rounded < one) & ~cuts).mean()) < 0.012
    assert abs(cut.mean() - ((224 * np.sqrt(1 - lam) >= 2) & cuts).mean()) < 0.012
    assert_frequencies((ours["share"] < 1).astype(int), np.array([1 - (blended | cut).mean(), (blended | cut).mean()]))
    for switch_prob, only_cuts in ((0.0, False), (1.0, True)):
        extreme = drawn(mixup=0.8, cutmix=1.0, switch_prob=switch_prob)
        assert (extreme["blend"] == one).all() == only_cuts
        assert (not extreme["mix_box"].any()) != only_cuts
    assert (drawn(mixup=0.8, cutmix=1.0, prob=0.0)["share"] == 1).all()
    # Where one of the two is not set, the other is always used.
    assert not drawn(mixup=0.8, switch_prob=1.0)["mix_box"].any()
    assert (drawn(cutmix=0.8, switch_prob=0.0)["blend"] == one).all()


def test_both_of_a_pair_are_mixed_alike() -> None:
    """The same share and box in any order, and whatever other samples are drawn."""
    spec = ViewSpec(size_px=48, mixup=0.8, cutmix=1.0)
    ids = np.arange(301)
    partner = partners(4, 9, ids, 301)
    sizes = np.tile([50, 60, 50, 60], (301, 1))
    full = draw_views(spec, 4, 9, ids, sizes, partner)
    assert np.array_equal(full.partner, partner)  # type: ignore[arg-type]
    for field in ("blend", "mix_box", "share"):
        values = getattr(full, field)
        assert np.array_equal(values, values[partner])
        assert len(np.unique(values, axis=0)) > 50
    some = np.random.default_rng(0).permutation(301)[:77]
    part = draw_views(spec, 4, 9, some, sizes[some], partner[some])
    for field in ("partner", "blend", "mix_box", "share", "window", "flip"):
        assert np.array_equal(getattr(part, field), getattr(full, field)[some])
    other = draw_views(spec, 4, 10, ids, sizes, partners(4, 10, ids, 301))
    assert not np.array_equal(other.share, full.share)  # type: ignore[arg-type]
