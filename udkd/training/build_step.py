"""Builds a recipe's training step. What is compiled is decided here, once, and never while steps run."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from udkd.augment import apply as augment
from udkd.augment.apply import ViewTable
from udkd.augment.preprocessing import NetworkInput
from udkd.augment.views import ViewSpec
from udkd.config.recipe import Recipe
from udkd.losses.distill import Loss, distill_with
from udkd.losses.methods.connect import Connection
from udkd.models.features import FeatureExtractor
from udkd.models.module_swaps import INDUCTOR_OPTIONS
from udkd.teacher.sources import LiveTargets
from udkd.teacher.target import TargetSource
from udkd.training.exchange import Exchange
from udkd.training.loss_scale import LossScale
from udkd.training.method_loss import MethodLoss
from udkd.training.sliced_step import SlicedStep
from udkd.training.step import ForwardLoss, TrainStep, make_forward_loss, make_forward_loss_of_one
from udkd.training.student import Student
from udkd.utils.autocast import input_dtype
from udkd.utils.compile import compiled
from udkd.utils.errors import ConfigError


def build_step(
    recipe: Recipe,
    spec: ViewSpec,
    students: Sequence[Student],
    teacher: TargetSource,
    device: torch.device,
    connections: Sequence[Connection] = (),
    loss_scale: LossScale | None = None,
    exchange: Exchange | None = None,
) -> TrainStep | SlicedStep:
    """The step of a recipe for views of `spec` (the recipe's, or smaller ones of a progressive run).

    students: those that train, in the recipe's order. connections: one for each of them, where the loss has a method.
    loss_scale: of float16 training, continued; None begins one where the recipe needs it.
    exchange: what this process computes of a batch; None for all.
    """
    all_train = len(students) == len(recipe.students)
    apart = exchange if exchange and exchange.by_student else None
    of_students = [NetworkInput(size_px=spec.size_px, preprocessing=student.preprocessing) for student in students]
    of_teacher = teacher.input if isinstance(teacher, LiveTargets) and teacher.shares_views else of_students[0]
    inputs = list(dict.fromkeys([*of_students, of_teacher]))
    indices = [inputs.index(each) for each in of_students]
    step = TrainStep(
        students=[students[apart.group.rank]] if apart else students,
        augment=_augment(recipe, spec, inputs, device),
        teacher=teacher,
        teacher_input=inputs.index(of_teacher),
        forward_loss=_forward_loss(recipe, students, indices, connections, device, apart),
        method=MethodLoss(connections=connections) if connections else None,
        student_indices=None if all_train else torch.tensor([student.index for student in students], device=device),
        parts=recipe.train.accumulate,
        loss_scale=(loss_scale or LossScale(device)) if recipe.train.precision == "float16" else None,
        exchange=apart,
    )
    if recipe.train.slices == 1:
        return step
    return SlicedStep(step, exchange or Exchange(recipe.train.slices, device=device))


def _forward_loss(
    recipe: Recipe,
    students: Sequence[Student],
    indices: Sequence[int],
    connections: Sequence[Connection],
    device: torch.device,
    apart: Exchange | None,
) -> ForwardLoss:
    networks: list[Any] = [connection.extractor for connection in connections]
    networks = networks or [FeatureExtractor(student.model, []) for student in students]
    options: dict[str, Any] = {"device_type": device.type, "precision": recipe.train.precision}
    inductor = inductor_options(recipe)
    if apart:
        rank = apart.group.rank
        run = make_forward_loss_of_one(networks[rank], indices[rank], make_loss(recipe, device), apart, **options)
    elif recipe.train.compile == "all" and loss_kind(recipe) == "compiled":
        run = compiled(make_forward_loss(networks, indices, distill_with(recipe.loss.settings), **options), inductor)
    else:
        if recipe.train.compile == "all":
            networks = [compiled(network, inductor) for network in networks]
        run = make_forward_loss(networks, indices, make_loss(recipe, device), **options)
    return run if recipe.train.channels_last else _channels_first(run)


def _channels_first(run: ForwardLoss) -> ForwardLoss:
    return lambda inputs, *targets: run([x_BCHW.contiguous() for x_BCHW in inputs], *targets)


def loss_kind(recipe: Recipe) -> str:
    """The implementation of a recipe's loss: "eager", "compiled" or "fused"."""
    if recipe.train.loss_impl != "auto":
        return recipe.train.loss_impl
    return "eager" if recipe.train.compile == "off" else "compiled"


def compiles(recipe: Recipe) -> bool:
    """Whether the first step of a recipe waits for torch.compile."""
    live = recipe.needs_teacher and recipe.teacher.source == "live"
    return recipe.train.compile != "off" or loss_kind(recipe) == "compiled" or (live and recipe.teacher.compile)


def make_loss(recipe: Recipe, device: torch.device) -> Loss:
    """The recipe's loss as a separate function, not part of a larger graph. ConfigError: the fused loss cannot run here."""
    settings = recipe.loss.settings
    kind = loss_kind(recipe)
    if kind == "fused" and settings.label_loss != "cross_entropy":
        raise ConfigError(
            f"train.loss_impl is fused and loss.label_loss {settings.label_loss}; expected compiled or eager; "
            "change train.loss_impl"
        )
    if kind == "fused":
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ConfigError(
                f"train.loss_impl is fused and the device {device}; expected a GPU; set train.loss_impl to compiled"
            )
        try:
            from udkd.losses.fused import fused_loss  # triton is imported only when chosen
        except ModuleNotFoundError:
            raise ConfigError(
                "train.loss_impl is fused; expected Triton to be installed; set train.loss_impl to compiled"
            ) from None
        return fused_loss(settings)
    loss = distill_with(settings)
    return compiled(loss) if kind == "compiled" else loss  # compiled: fewer passes over memory


def _augment(
    recipe: Recipe, spec: ViewSpec, inputs: Sequence[NetworkInput], device: torch.device
) -> Callable[[Tensor, ViewTable], list[Tensor]]:
    """Canvases and views to inputs: rounded as autocast would round them for the students and for a live teacher.

    Compiling changes its last bit: a live teacher that sees the students' views then equals a cached one only to 1e-6.
    """
    is_shared = recipe.needs_teacher and recipe.teacher.source == "live" and recipe.teacher.views != "eval"
    precisions = {recipe.train.precision, *([recipe.teacher.precision] if is_shared else [])}
    dtype = input_dtype(recipe.train.precision) if len(precisions) == 1 else torch.float32
    uncompiled = partial(augment.apply_each, networks=inputs, spec=spec, dtype=dtype)
    if recipe.train.compile != "all":
        return uncompiled
    if device.type != "cpu":
        return compiled(uncompiled)
    finish = compiled(partial(augment.finish_each, networks=inputs, spec=spec, dtype=dtype))

    def pixels_then_finish(canvas_BSS3: Tensor, views: ViewTable) -> list[Tensor]:
        # On a CPU, compiling the pixels too takes many times as long (28 s for 3, once 75 s) and makes no step faster.
        return finish(augment.pixels_each(canvas_BSS3, views, inputs, spec), views)

    return pixels_then_finish


def inductor_options(recipe: Recipe) -> dict[str, Any] | None:
    """Inductor's options as the recipe sets them, None for its defaults."""
    options: dict[str, Any] = {}
    if recipe.perf.gathered_pool:
        options |= INDUCTOR_OPTIONS
    if recipe.perf.force_layout:
        options["force_layout_optimization"] = True
    if recipe.perf.combo_kernels:
        options["combo_kernels"] = True
    return options or None
