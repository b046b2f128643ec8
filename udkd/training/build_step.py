"""Puts a step together as its recipe says: what is compiled, what runs beside what. No step decides anything later."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from udkd.augment import apply as augment
from udkd.augment.apply import ViewTable
from udkd.augment.views import ViewSpec
from udkd.config.recipe import Recipe
from udkd.data.batch import Batch
from udkd.losses.distill import Loss, Terms
from udkd.losses.methods.connectors import Connection
from udkd.models.features import FeatureExtractor
from udkd.models.module_swaps import INDUCTOR_OPTIONS
from udkd.teacher.target import TargetSource, TeacherTargets
from udkd.training.compile import Forward, compiled_loss, eager_loss, forward, mixed_forward, on_streams
from udkd.training.method_loss import MixedObjective
from udkd.training.schedule import EpochSchedule, at_step
from udkd.training.step import Objective, TrainStep
from udkd.training.student import Student
from udkd.utils.compile import compiled
from udkd.utils.errors import ConfigError


def build_step(
    recipe: Recipe,
    spec: ViewSpec,
    students: Sequence[Student],
    lessons: TargetSource,
    device: torch.device,
    links: Sequence[Connection] = (),
) -> TrainStep:
    """The step of a recipe for views of `spec` (its own, or smaller ones of a progressive run).

    students: those that train, in the recipe's order. links: theirs to the teacher, where the loss has a method.
    """
    everyone = len(students) == len(recipe.students)
    return TrainStep(
        students=students,
        augment=_augment(recipe, spec, device),
        lessons=lessons,
        objective=_mixed(recipe, students, links, device) if recipe.is_mixed else _plain(_forward(recipe, students, device)),
        channels_last=recipe.train.channels_last,
        columns=None if everyone else torch.tensor([student.index for student in students], device=device),
    )


def _plain(forward: Forward) -> Objective:
    """The paper's loss, with its settings for ever."""

    def objective(
        x_BCHW: Tensor, batch: Batch, lesson: TeacherTargets, plan: EpochSchedule, place: Tensor
    ) -> tuple[list[Tensor], Terms]:
        return forward(x_BCHW, batch.labels, lesson.logits, lesson.weight)

    return objective


def _mixed(recipe: Recipe, students: Sequence[Student], links: Sequence[Connection], device: torch.device) -> Objective:
    """A loss with weights that vary, or with a method's term."""
    if loss_kind(recipe) == "fused":
        raise ConfigError(
            "train.loss_impl is fused, whose weights are fixed; expected eager or compiled beside loss.method, loss.schedules "
            "and students.*.loss_weight; set train.loss_impl to auto"
        )
    in_one = recipe.train.compile == "all"
    whole = mixed_forward(
        [link.tap for link in links] or [FeatureExtractor(student.model, []) for student in students],
        eager_loss(recipe.loss.settings) if in_one or loss_kind(recipe) == "eager" else compiled_loss(recipe.loss.settings),
        device_type=device.type,
        autocast=recipe.train.precision == "bfloat16",
    )
    together = compiled(whole, inductor_options(recipe)) if in_one else whole
    mixed = MixedObjective(forward=together, links=links)
    columns = torch.tensor([student.index for student in students], device=device)

    def objective(
        x_BCHW: Tensor, batch: Batch, lesson: TeacherTargets, plan: EpochSchedule, place: Tensor
    ) -> tuple[list[Tensor], Terms]:
        weights_4N, keys_N = at_step(plan.weights, place), at_step(plan.dropout_keys, place)
        return mixed(x_BCHW, batch, lesson, weights_4N.index_select(1, columns), keys_N.index_select(0, columns))

    return objective


def loss_kind(recipe: Recipe) -> str:
    """Which loss a recipe takes: "eager", "compiled" or "fused"."""
    if recipe.train.loss_impl != "auto":
        return recipe.train.loss_impl
    return "eager" if recipe.train.compile == "off" else "compiled"


def make_loss(recipe: Recipe, device: torch.device) -> Loss:
    """The recipe's loss as a function of its own, not part of a bigger graph. ConfigError: a fused one without a GPU."""
    settings = recipe.loss.settings
    kind = loss_kind(recipe)
    if kind == "fused" and settings.label_loss != "cross_entropy":
        raise ConfigError(
            f"train.loss_impl is fused and the label's loss {settings.label_loss}; expected compiled or eager; "
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
    return compiled_loss(settings) if kind == "compiled" else eager_loss(settings)


def _augment(recipe: Recipe, spec: ViewSpec, device: torch.device) -> Callable[[Tensor, ViewTable], Tensor]:
    """Canvases and views to input, in the dtype to which autocast would round it for the students and for who else sees it.

    Compiled, it moves by a last bit: a live teacher that sees the students' views then says what a cache says to 1e-6 only.
    """
    teacher_sees_it = recipe.needs_teacher and recipe.teacher.source == "live" and recipe.teacher.views != "eval"
    precisions = {recipe.train.precision, *([recipe.teacher.precision] if teacher_sees_it else [])}
    dtype = torch.bfloat16 if precisions == {"bfloat16"} else torch.float32
    whole = partial(augment.apply, spec=spec, dtype=dtype)
    if recipe.train.compile != "all":
        return whole
    if device.type != "cpu":
        return compiled(whole)
    finish = compiled(partial(augment.finish, jitter=spec.jitters, dtype=dtype))

    def pixels_then_finish(canvas_BSS3: Tensor, views: ViewTable) -> Tensor:
        # On a CPU, compiling the pixels too takes many times as long (28 s for 3, once 75 s) and makes no step faster.
        return finish(augment.pixels(canvas_BSS3, views, spec.size_px), views)

    return pixels_then_finish


def _forward(recipe: Recipe, students: Sequence[Student], device: torch.device) -> Forward:
    networks: list[Any] = [student.model for student in students]
    options: dict[str, Any] = {"device_type": device.type, "autocast": recipe.train.precision == "bfloat16"}
    if recipe.train.compile != "all":
        networks = on_streams(networks, device) if recipe.perf.streams else networks
        return forward(networks, make_loss(recipe, device), **options)
    inductor = inductor_options(recipe)
    if loss_kind(recipe) == "compiled" and not recipe.perf.streams:
        return compiled(forward(networks, eager_loss(recipe.loss.settings), **options), inductor)
    networks = [compiled(network, inductor) for network in networks]
    return forward(on_streams(networks, device) if recipe.perf.streams else networks, make_loss(recipe, device), **options)


def inductor_options(recipe: Recipe) -> dict[str, Any] | None:
    """The recipe's wishes for the compiler, None for its own defaults."""
    options: dict[str, Any] = {}
    if recipe.perf.realize_reads:
        options["realize_reads_threshold"] = recipe.perf.realize_reads
    if recipe.perf.gathered_pool:
        options |= INDUCTOR_OPTIONS
    if recipe.perf.force_layout:
        options["force_layout_optimization"] = True
    if recipe.perf.combo_kernels:
        options["combo_kernels"] = True
    if recipe.perf.autotune:
        options["max_autotune"] = True
    return options or None
