"""Labels of mixed samples: the loss against torch's and timm's soft labels in float64, the correct share, and weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import udkd
from udkd.augment.mixing import MixedLabels
from udkd.losses.distill import correct_share, cross_entropy, distill, distill_with
from udkd.losses.sample_weight import sample_weight, weight_kinds
from udkd.losses.settings import LossSettings
from udkd.teacher.target import TeacherTargets
from udkd.utils.errors import ConfigError

BATCH, CLASSES = 9, 6


def some_labels(share: Tensor | None = None, seed: int = 0) -> MixedLabels:
    """The first sample has one label twice, as an id that is its own partner."""
    generator = torch.Generator().manual_seed(seed)
    own, other = torch.randint(0, CLASSES, (2, BATCH), generator=generator)
    other[0] = own[0]
    return MixedLabels(own=own, other=other, share=torch.rand(BATCH, generator=generator) if share is None else share)


def soft(labels: MixedLabels, smoothing: float) -> Tensor:
    """The label distribution, float64 [B, C]: one-hot vectors, smoothed, mixed by their shares."""
    share = labels.share.double()[:, None]
    one_hot = share * F.one_hot(labels.own, CLASSES) + (1 - share) * F.one_hot(labels.other, CLASSES)
    return (1 - smoothing) * one_hot + smoothing / CLASSES


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
def test_cross_entropy_is_that_of_the_mixed_distribution(share: float | None, smoothing: float) -> None:
    labels = some_labels(None if share is None else torch.full((BATCH,), share))
    z = torch.randn(BATCH, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    ours, reference = cross_entropy(z, labels, smoothing), F.cross_entropy(z, soft(labels, smoothing))
    gradients = [torch.autograd.grad(loss, z)[0] for loss in (ours, reference)]
    assert float(ours.detach()) == pytest.approx(float(reference.detach()), rel=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    assert float(cross_entropy(z.float(), labels, smoothing).detach()) == pytest.approx(float(reference.detach()), rel=2e-6)
    if share in (0.0, 1.0):
        plain = labels.own if share else labels.other
        assert float(ours.detach()) == pytest.approx(
            float(F.cross_entropy(z.detach(), plain, label_smoothing=smoothing)), rel=1e-14
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_timms(smoothing: float) -> None:
    mixup = pytest.importorskip("timm.data.mixup")
    loss = pytest.importorskip("timm.loss").SoftTargetCrossEntropy()
    for share in (0.0, 0.25, 1.0):
        labels = some_labels()
        labels = MixedLabels(own=labels.own, other=labels.own.flip(0), share=torch.full((BATCH,), share))
        z = torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(1))
        aim = mixup.mixup_target(labels.own, CLASSES, lam=share, smoothing=smoothing)
        torch.testing.assert_close(cross_entropy(z, labels, smoothing), loss(z, aim), rtol=2e-6, atol=1e-7)


def test_only_the_hard_term_depends_on_the_labels() -> None:
    logits = [torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    labels, settings = some_labels(), LossSettings(alpha=0.5, beta=0.3, gamma=0.2, label_smoothing=0.1)
    weight = torch.rand(BATCH, generator=torch.Generator().manual_seed(3))
    mixed, plain = (distill(logits, each, logits[0].half(), weight, settings) for each in (labels, labels.own))
    assert torch.equal(mixed.teacher, plain.teacher)
    assert torch.equal(mixed.peer, plain.peer)
    for term, z in zip(mixed.hard, logits, strict=True):
        assert float(term) == pytest.approx(float(F.cross_entropy(z.double(), soft(labels, 0.1))), rel=2e-6)
    criterion = udkd.DistillationLoss(alpha=0.5, beta=0.3, gamma=0.2, label_smoothing=0.1)
    terms = criterion(logits, udkd.MixedLabels(*labels), TeacherTargets(logits=logits[0].half(), weight=weight))
    assert torch.equal(terms.total, mixed.total)


def test_a_compiled_loss_is_one_graph_for_all_shares() -> None:
    """Another batch of MixedLabels, a tuple to the compiler, is no reason to compile again."""
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    settings = LossSettings(alpha=0.5, beta=0.5, gamma=0.0, label_smoothing=0.1)
    loss = distill_with(settings)
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend=count)
    weights_3N = torch.tensor([[0.5], [0.5], [0.0]])
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        z, teacher = torch.randn(2, BATCH, CLASSES, generator=generator)
        given = ([z], some_labels(seed=seed), teacher, torch.rand(BATCH, generator=generator), weights_3N)
        torch.testing.assert_close(compiled(*given).total, loss(*given).total)
    assert len(graphs) == 1


def test_correct_is_the_share_of_the_predicted_label() -> None:
    labels = MixedLabels(own=torch.tensor([0, 1, 2, 3, 4]), other=torch.tensor([1, 0, 2, 5, 5]), share=torch.full((5,), 0.75))
    assert correct_share(torch.tensor([0, 0, 2, 1, 5]), labels).tolist() == [0.75, 0.25, 1.0, 0.0, 0.25]
    assert correct_share(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2])).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("kind", ["correctness", "entropy"])
def test_weights_are_averaged_by_the_shares(kind: str) -> None:
    assert kind in weight_kinds()
    labels = some_labels()
    logits = torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(1)) * 3
    entropy = -(torch.softmax(logits, -1) * torch.log_softmax(logits, -1)).sum(-1)
    weight = sample_weight(kind, logits, entropy, labels)
    for row in range(BATCH):
        best, share = int(logits[row].argmax()), float(labels.share[row])
        right = share * (best == int(labels.own[row])) + (1 - share) * (best == int(labels.other[row]))
        certain = 1 - float(entropy[row]) / math.log(CLASSES)
        assert float(weight[row]) == pytest.approx(certain * (right if kind == "correctness" else 1), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.batch_size=9"], r"views.cutmix mixes pairs of a batch and train.batch_size is 9; expected an even number"),
        (['teacher.views="eval"'], r"teacher.views = eval shows the teacher one of them; expected a number of views; set"),
        (
            ['loss.label_loss="evidential"', "loss.alpha=1", "loss.beta=0", "loss.gamma=0", "loss.label_smoothing=0"],
            "the evidential loss takes one label a sample; expected cross_entropy",
        ),
        (['loss.method="crd"', 'teacher.source="live"'], "loss.method = crd takes one label a sample; expected another method"),
        (['loss.method="dkd"'], "loss.method = dkd takes one label a sample; expected another method"),
        (['train.loss_impl="fused"'], "train.loss_impl = fused takes one label a sample; expected compiled or eager"),
    ],
)
def test_settings_that_mixing_excludes_are_one_line(settings: list[str], message: str) -> None:
    strong = ["views.cutmix=1.0", "teacher.views=2", "views.jitter='uint8'"]
    with pytest.raises(ConfigError, match=message) as caught:
        udkd.load_recipe("smoke", [*strong, *settings])
    assert "\n" not in str(caught.value)
    udkd.load_recipe("smoke", ["teacher.views=2", "views.jitter='uint8'", *settings])


def test_settings_that_mixing_allows() -> None:
    udkd.load_recipe("smoke", ["views.policy='rand_augment'", "views.jitter='uint8'", "views.erase_prob=0.2"])
    without_teacher = ["loss.alpha=1", "loss.beta=0", "views.mixup=0.2", "views.jitter='uint8'"]
    udkd.load_recipe("smoke", [*without_teacher, "train.progressive_px=32"])
    udkd.load_recipe("smoke", [*without_teacher, "views.mix_prob=0", "train.batch_size=9"])
    parts = udkd.load_recipe("smoke", [*without_teacher, "train.batch_size=6", "train.accumulate=2"])
    assert parts.for_teacher().views.spec == parts.views.spec
    with pytest.raises(
        ConfigError, match=r"the evidential loss takes one label a sample; expected cross_entropy; set loss\.label_loss or fit"
    ):
        udkd.load_recipe("smoke", [*without_teacher, "fit.loss='evidential'"]).for_teacher()
