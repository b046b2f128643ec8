"""A folder that `timm.create_model('local-dir:OUT', pretrained=True)` opens: config.json and model.safetensors."""

import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udkd.export.student_files import TrainedStudent
from udkd.models.plain_weights import plain_weights
from udkd.training.run_folder import RunFolder
from udkd.utils.errors import ConfigError, RunError
from udkd.utils.files import FolderLock, write_bytes, write_json
from udkd.utils.parsing import parse_json
from udkd.utils.progress import SILENT, Observer

MAX_DEVIATION = 1e-4
"""Bound on a logit's deviation from the student's, relative to the largest where that is above 1."""

_SAME_NAME = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "densenet121", "densenet161", "densenet169", "densenet201"),
    *("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
)
_EPS = {"bn_eps": 1e-3}
TWINS: Mapping[str, tuple[str, Mapping[str, Any]]] = {name: (name, {}) for name in _SAME_NAME} | {
    "mobilenet_v2": ("mobilenetv2_100", {}),
    "mnasnet0_5": ("mnasnet_050", {}),
    "mnasnet1_0": ("mnasnet_100", {}),
    "efficientnet_b5": ("efficientnet_b5", _EPS),
    "efficientnet_b6": ("efficientnet_b6", _EPS),
    "efficientnet_b7": ("efficientnet_b7", _EPS),
    "efficientnet_v2_s": ("efficientnetv2_s", _EPS),
    "efficientnet_v2_m": ("efficientnetv2_m", _EPS),
    "efficientnet_v2_l": ("efficientnetv2_l", _EPS),
    "vit_b_16": ("vit_base_patch16_224", {}),
    "vit_b_32": ("vit_base_patch32_224", {}),
    "vit_l_16": ("vit_large_patch16_224", {}),
    "vit_l_32": ("vit_large_patch32_224", {}),
}
"""torchvision's name -> timm's name of the same network, and the arguments that make it the same."""

_SOURCE_FACTS = ("architecture", "first_conv", "classifier", "fixed_input_size")
"""Fields of timm's pretrained_cfg that hold for any weights; the others describe timm's own."""


@dataclass(frozen=True, kw_only=True)
class HfExport:
    """What was written. architecture: timm's name. difference: the largest deviation of a logit, see MAX_DEVIATION."""

    folder: Path
    name: str
    architecture: str
    difference: float


def export_hf(
    run: RunFolder,
    out: Path | None,
    *,
    student: str | None,
    checkpoint: str = "last",
    observer: Observer = SILENT,
) -> HfExport:
    """Write a student as timm's save_for_hf would, to a new folder `out` or that of an earlier export; default RUN/hf/NAME.

    Raises ConfigError: timm is not installed, or has no such network. RunError: no checkpoint, no such student, a folder of
    something else, or timm's network computes other logits. Nothing is written then.
    """
    if find_spec("timm") is None:
        raise ConfigError("timm is not installed; expected the timm extra; run: pip install 'udkd[timm]'")
    trained = TrainedStudent.load(run, student, checkpoint)
    folder = out or run.path / "hf" / trained.name.replace("/", "-")
    _require_ours(folder)
    twin, arguments = _twin(trained)
    difference = _require_equal(twin, trained)
    config = _config(twin, arguments, trained)
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder):
        (folder / "config.json").unlink(missing_ok=True)  # a folder without it is refused by timm
        write_bytes(folder / "model.safetensors", plain_weights(twin.state_dict(), {}))
        write_json(folder / "config.json", config)
    if trained.recipe.evaluation.flip_tta:
        observer.note("the run is evaluated with mirror images (evaluation.flip_tta); a network of timm has the image alone")
    return HfExport(folder=folder, name=trained.name, architecture=config["architecture"], difference=difference)


def _require_ours(folder: Path) -> None:
    """RunError where a folder holds something else than an earlier export."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file; expected a new folder; choose another")
    names = {path.name for path in folder.iterdir()}
    try:
        ours = "udkd" in parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        ours = False
    if names and not ours:
        raise RunError(f"{folder} holds {min(names)}; expected a new folder, or one of an earlier export; choose another")


def _twin(trained: TrainedStudent) -> tuple[nn.Module, dict[str, Any]]:
    """Timm's network with the student's weights, and the arguments that it was made with. ConfigError: there is none."""
    import timm

    architecture = trained.recipe.students[trained.index].architecture
    name, fixed = TWINS.get(architecture, (architecture.removeprefix("timm/"), {}))
    if name == architecture and architecture not in TWINS:
        raise ConfigError(
            f"{architecture} has no known twin in timm; expected a network of timm, or one of torchvision's such as resnet18; "
            "use --format safetensors (its own weights) or --format onnx"
        )
    arguments = dict(fixed)
    try:
        if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
            arguments["img_size"] = trained.recipe.views.size_px
        twin: nn.Module = timm.create_model(name, num_classes=len(trained.classes), **arguments)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"timm {timm.__version__} cannot make {name} ({str(error).splitlines()[0]}); expected the twin of {architecture}; "
            "use --format safetensors or --format onnx, or another version of timm"
        ) from None
    weights = _renamed(trained.network.state_dict(), twin.state_dict())
    if weights is None:
        raise ConfigError(
            f"the weights of {architecture} do not fit timm {timm.__version__}'s {name}; expected the same tensors; "
            "use --format safetensors or --format onnx"
        )
    twin.load_state_dict(weights)
    return twin.eval().requires_grad_(False), arguments


def _renamed(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Weights under the names of another implementation of the same network; None where they do not fit.

    By name where the names are the same, else by size, in order: the k-th tensor of a size is the k-th of that size.
    """
    if {name: value.shape for name, value in weights.items()} == {name: value.shape for name, value in wanted.items()}:
        return dict(weights)

    def size(value: Tensor) -> tuple[int, int]:
        return len(value) if value.dim() else 0, value.numel()  # timm's VGG has convolutions for the first linear layers

    waiting: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for value in weights.values():
        waiting[size(value)].append(value)
    renamed = {}
    for name, value in wanted.items():
        if not waiting[size(value)]:
            return None
        renamed[name] = waiting[size(value)].pop(0).reshape(value.shape)
    return None if any(waiting.values()) else renamed


def _require_equal(twin: nn.Module, trained: TrainedStudent) -> float:
    """Run both networks on the same random images; the largest deviation of a logit. RunError where it is above the limit."""
    px = trained.recipe.views.size_px
    x_BCHW = torch.randn(4, 3, px, px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected_BC, actual_BC = trained.network(x_BCHW), twin(x_BCHW)
    scale_B1 = expected_BC.abs().amax(-1, keepdim=True).clamp(min=1.0)
    difference = float(((actual_BC - expected_BC).abs() / scale_B1).max())
    if not difference <= MAX_DEVIATION:
        raise RunError(
            f"timm's network differs from {trained.name} (logits by {difference:.2g}); expected at most {MAX_DEVIATION:g}; "
            "nothing was written; use --format safetensors or --format onnx"
        )
    return difference


def _config(twin: nn.Module, arguments: Mapping[str, Any], trained: TrainedStudent) -> dict[str, Any]:
    """config.json, by timm's own function."""
    import timm

    spec, preprocessing = trained.recipe.evaluation_spec, trained.recipe.student_preprocessing(trained.index)
    described: dict[str, Any] = dict(twin.pretrained_cfg)  # type: ignore[arg-type]
    twin.pretrained_cfg = {name: described[name] for name in _SOURCE_FACTS if name in described} | {  # type: ignore[assignment]
        "num_classes": len(trained.classes),
        "input_size": (3, spec.size_px, spec.size_px),
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "interpolation": preprocessing.interpolation,
        "crop_pct": _crop_pct(spec.size_px, spec.resize_px),
        "crop_mode": "squash" if spec.scheme == "centre_squash" else "center",
    }
    facts = trained.description
    model_config = {
        "label_names": facts["classes"],
        "label_descriptions": dict(zip(facts["classes"], facts["class_names"], strict=True)),
        "udkd": {name: value for name, value in facts.items() if name not in ("classes", "class_names")},
    }
    with tempfile.TemporaryDirectory() as folder:
        timm.models.save_for_hf(twin, folder, model_config=model_config, model_args=dict(arguments), safe_serialization=True)
        config: dict[str, Any] = parse_json((Path(folder) / "config.json").read_bytes())
    config.pop("model_args", None)  # timm 1.0.31 repeats num_classes there, on which transformers 5.24 fails
    return config | ({"model_args": dict(arguments)} if arguments else {})


def _crop_pct(size_px: int, resize_px: int) -> float:
    """The fraction with which timm resizes to resize_px before the crop: floor(size_px / fraction)."""
    fraction = size_px / resize_px
    while math.floor(size_px / fraction) < resize_px:
        fraction = math.nextafter(fraction, 0.0)
    assert math.floor(size_px / fraction) == resize_px
    return fraction
