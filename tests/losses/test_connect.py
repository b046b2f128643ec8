"""Connectors: what they need of two networks, what they keep, what they refuse; feature maps as hooks capture them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.feature_extraction import create_feature_extractor

from tests.factories import small_recipe
from tests.utils.slow_hash import GOLDEN, MASK, slow_mix
from udkd.data.batch import Batch
from udkd.losses.methods.connect import Connection, connect
from udkd.losses.methods.crd import Crd
from udkd.losses.methods.registry import MethodInputs
from udkd.losses.sample_weight import SampleWeighting
from udkd.losses.storage import Storage
from udkd.models.build import build
from udkd.models.features import FeatureExtractor, pooled, stages
from udkd.teacher.sources import LiveTargets
from udkd.teacher.targets import PackedTargets, pack
from udkd.utils.errors import ConfigError

CPU = torch.device("cpu")
LABELS = np.repeat(np.arange(4), 5)
MADE = {"labels_I": LABELS, "ids": np.arange(20), "device": CPU}


def network(architecture: str, seed: int = 0) -> nn.Module:
    return build(architecture, 4, image_px=32, seed=seed)


def connection(
    method: str, *more: str, student: nn.Module | None = None, teacher: nn.Module | None = None, index: int = 0
) -> Connection:
    recipe = small_recipe(f'loss.method="{method}"', 'teacher.source="live"', "teacher.views=3", *more)
    teacher_network = teacher or network("resnet18")
    features = stages(teacher_network, 32)[-1].channels
    joined = {"index": index, "seed": recipe.train.seed, "image_px": recipe.views.size_px, "features": features}
    return connect(recipe.loss.method, recipe.methods, student or network("squeezenet1_1"), teacher_network, **MADE, **joined)


def method_inputs(connection: Connection, teacher: nn.Module, ids: Tensor, step: int = 0) -> MethodInputs:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((len(ids), 3, 32, 32)).astype(np.float32))
    logits, maps = connection.extractor(x)
    with torch.no_grad():
        names = [*connection.teacher_modules, stages(teacher, 32)[-1].module]
        teacher_logits, (*teacher_maps, deepest) = FeatureExtractor(teacher.eval(), names)(x)
    return MethodInputs(
        maps=maps,
        teacher_maps=teacher_maps,
        logits=logits,
        teacher_logits=teacher_logits,
        labels=torch.from_numpy(LABELS)[ids],
        ids=ids,
        key=torch.tensor(step),
        teacher_features=pooled(deepest),
    )


def test_stages_of_a_resnet_are_its_stem_and_layers() -> None:
    model = network("resnet18").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    value = stages(model, 32)
    assert [stage.module for stage in value] == ["relu", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    assert [stage.channels for stage in value] == [64, 64, 128, 256, 512]
    assert [stage.size for stage in value] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:NOTE. The nodes")  # dropout is not a node in evaluation mode
@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2"])
def test_captured_maps_match_torchvisions_extractor(architecture: str) -> None:
    model = network(architecture).eval()
    names = [stage.module for stage in stages(model, 32)]
    extractor = create_feature_extractor(model, train_return_nodes=names, eval_return_nodes=names)
    x = torch.rand(2, 3, 32, 32)
    logits, maps = FeatureExtractor(model, names)(x)
    for name, wanted in extractor(x).items():
        assert torch.equal(maps[names.index(name)], wanted), name
    assert torch.equal(logits, model(x))
    head = model.fc if architecture == "resnet18" else model.classifier[1]
    torch.testing.assert_close(head(pooled(maps[-1])), logits)


def test_a_transformer_has_no_maps() -> None:
    with pytest.raises(ConfigError, match="VisionTransformer has no feature maps"):
        stages(VisionTransformer(image_size=32, patch_size=16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8), 32)


@pytest.mark.parametrize("method", ["attention", "fitnets", "rkd", "crd", "reviewkd"])
def test_every_method_gives_the_student_gradients(method: str) -> None:
    student, teacher = network("mobilenet_v2").train(), network("resnet18", seed=1)
    made = connection(method, "methods.crd.negatives=7", student=student, teacher=teacher)
    term = made.connector(method_inputs(made, teacher, torch.arange(0, 20, 3)))
    assert term.shape == ()
    assert term.item() > 0
    term.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is not None for p in made.connector.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_connector_weights_depend_on_seed_and_student() -> None:
    weights = [
        connection("fitnets", f"train.seed={seed}", index=index).connector.state_dict()["regressor.0.weight"]
        for seed, index in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_too_few_maps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"methods\.fitnets\.stage is 9 and the networks share 4 sizes"):
        connection("fitnets", "methods.fitnets.stage=9")
    with pytest.raises(ConfigError, match=r"methods\.attention\.stages is 5"):
        connection("attention", "methods.attention.stages=5")


def test_crd_follows_its_formula_and_updates_its_memory() -> None:
    """Two steps, the second against a plain computation with the memory that the first left."""
    student, teacher = network("squeezenet1_1").eval(), network("resnet18")
    made = connection("crd", "methods.crd.negatives=6", "methods.crd.embed_dim=8", student=student, teacher=teacher)
    crd = made.connector
    assert isinstance(crd, Crd)
    first = crd(method_inputs(made, teacher, torch.arange(0, 10)))
    assert bool(crd.begun)
    log_z, memory, teacher_memory = crd.log_z.clone(), crd.memory.clone(), crd.teacher_memory.clone()
    assert abs(first.item() / 0.8 / 2 - 6) < 6, "about log(K + 1) + K log((K + 1) / K) with M = 20 at first"
    ids = torch.arange(5, 15)
    now = method_inputs(made, teacher, ids, step=3)
    value = crd(now).item()
    assert torch.equal(crd.log_z, log_z), "fixed by the first batch"
    student_64 = F.normalize(crd.embed.linear(now.maps[0].mean((2, 3))), dim=1).detach().double().numpy()
    teacher_64 = F.normalize(crd.teacher_embed.linear(now.teacher_features), dim=1).detach().double().numpy()
    wanted = 0.0
    for row, sample in enumerate(ids.tolist()):
        for anchor, bank, z in ((student_64, teacher_memory, log_z[0]), (teacher_64, memory, log_z[1])):
            h = [
                student_64[row] @ teacher_64[row],
                *(anchor[row] @ bank[drawn].double().numpy() for drawn in negatives_of(crd, now, row)),
            ]
            h = [s / (s + 6 / 20) for s in (math.exp(score / 0.07) / math.exp(float(z)) for score in h)]
            wanted -= math.log(h[0]) + sum(math.log(1 - value) for value in h[1:])
        assert all(LABELS[drawn] != LABELS[sample] for drawn in negatives_of(crd, now, row))
    assert value == pytest.approx(0.8 * wanted / 10, rel=1e-4)
    halfway = F.normalize(0.5 * memory[ids] + 0.5 * torch.from_numpy(student_64).float(), dim=1)
    torch.testing.assert_close(crd.memory[ids], halfway)


def negatives_of(crd: Crd, now: MethodInputs, row: int) -> list[int]:
    """The same draws with Python's integers."""
    name = slow_mix(slow_mix(int(now.key) ^ 0x6E65676174697665) ^ slow_mix(int(now.ids[row])))
    others = [n for n in crd.by_class.tolist() if LABELS[n] != int(now.labels[row])]
    return [others[(slow_mix((name + k * GOLDEN) & MASK) >> 33) * len(others) >> 31] for k in range(6)]


def test_a_live_teacher_returns_the_maps_of_full_batches() -> None:
    model = network("resnet18").eval()

    class InBlocks:
        members, num_classes, num_features = (SimpleNamespace(model=model),), 4, 0

        def targets(self, x_BCHW: Tensor, ids_B: Tensor, view: int) -> PackedTargets:
            blocks = [F.pad(part, (0, 0, 0, 0, 0, 0, 0, 4 - len(part))) for part in x_BCHW.split(4)]
            return pack(torch.cat([model(block) for block in blocks])[: len(x_BCHW)], Storage(dtype="float32"))

    x, ids = torch.rand(7, 3, 32, 32), torch.arange(7)
    teacher = LiveTargets(InBlocks(), None, SampleWeighting(kind="constant"))  # type: ignore[arg-type]
    teacher.keep_maps(["layer2.1", "layer4.1"])
    for _ in range(2):
        target = teacher(Batch(ids=ids, canvas=ids, labels=ids), x, 0)
        assert set(target.maps) == {"layer2.1", "layer4.1"}
        pooled_head = model.fc(target.maps["layer4.1"].mean((2, 3)))
        assert target.logits is not None
        torch.testing.assert_close(pooled_head.log_softmax(-1), target.logits.log_softmax(-1))
        assert len(target.maps["layer2.1"]) == 7
