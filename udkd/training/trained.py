"""A trained run's classifier, in evaluation mode: one student, or the mean of all students' probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from udkd.augment.preprocessing import Preprocessing
from udkd.config.recipe import Recipe
from udkd.models.build import build, load_weights
from udkd.training.run_folder import RunFolder
from udkd.training.student import prefixed, require_like
from udkd.utils.errors import RunError

ENSEMBLE = "ensemble"


class ProbabilityMean(nn.Module):
    """The logarithm of the mean of several classifiers' probabilities, [B, C]: a softmax of it is that mean."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        log_p = [torch.log_softmax(model(x_BCHW).float(), dim=-1) for model in self.models]
        return torch.logsumexp(torch.stack(log_p), dim=0) - math.log(len(log_p))


class Renormalised(nn.Module):
    """A classifier for input of another normalisation than its own: x -> model(scale x + shift), for each channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, given: Preprocessing, own: Preprocessing) -> None:
        super().__init__()
        self.model = model
        given_mean, given_std, mean, std = (
            torch.tensor(values).view(3, 1, 1) for values in (given.mean, given.std, own.mean, own.std)
        )
        self.register_buffer("scale", given_std / std)
        self.register_buffer("shift", (given_mean - mean) / std)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BC: Tensor = self.model(x_BCHW * self.scale + self.shift)
        return logits_BC


def renormalised(model: nn.Module, given: Preprocessing, own: Preprocessing) -> nn.Module:
    """`model`, for input that is normalised as `given` says instead of its own way."""
    return model if given == own else Renormalised(model, given, own)


class FlipAveraged(nn.Module):
    """The mean of a classifier's logits for images and for their mirror images, [B, C]: evaluation.flip_tta."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BC: Tensor = (self.model(x_BCHW) + self.model(x_BCHW.flip(-1))) / 2
        return logits_BC


@dataclass(frozen=True, kw_only=True)
class TrainedClassifier:
    """A classifier as `udkd eval` scores it: with evaluation.flip_tta its model also runs on the mirror image.

    name: the student's, or ENSEMBLE. model: float32, on the CPU, contiguous layout. classes: the outputs' wnids.
    preprocessing: of its input.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    recipe: Recipe
    classes: tuple[str, ...]
    step: int

    @classmethod
    def load(cls, run: RunFolder, student: str | None, *, ensemble: bool, checkpoint: str = "last") -> "TrainedClassifier":
        """Restore a checkpoint: "last", "best" or a kept one's step.

        RunError: no such checkpoint, no such student, or no choice among several.
        """
        recipe = Recipe.from_stored(run.config, str(run.path))
        names = recipe.student_names()
        if ensemble and student is not None:
            raise RunError(f"--student {student} and --ensemble; expected one of them; drop one")
        if student is None and not ensemble and len(names) > 1:
            raise RunError(
                f"{run.path} holds the students {', '.join(names)}; expected one; name it with --student, or use --ensemble"
            )
        if student is not None and student not in names:
            raise RunError(f"{run.path} holds no student {student!r}; expected one of {', '.join(names)}; correct --student")
        if run.classes is None:
            raise RunError(f"{run.path / 'run.json'} does not name its classes; expected them in order; train again")
        loaded = run.load(checkpoint)
        loaded.require_counts(batch=recipe.train.batch_size, epochs=recipe.train.epochs)
        started = recipe.started_students(loaded.progress.step, loaded.progress.steps_per_epoch)
        indices = started if ensemble else [0 if student is None else names.index(student)]
        chosen = [_evaluated_model(recipe, index, len(run.classes), dict(loaded.tensors)) for index in indices]
        preprocessing, *others = [recipe.student_preprocessing(index) for index in indices]
        pairs = zip(chosen[1:], others, strict=True)
        members = [chosen[0], *(renormalised(member, preprocessing, other) for member, other in pairs)]
        model = ProbabilityMean(members) if ensemble else chosen[0]
        model.eval().requires_grad_(False)
        return cls(
            name=ENSEMBLE if ensemble else (student or names[0]),
            model=model,
            preprocessing=preprocessing,
            recipe=recipe,
            classes=tuple(run.classes),
            step=loaded.progress.step,
        )


def _evaluated_model(recipe: Recipe, index: int, num_classes: int, tensors: dict[str, Tensor]) -> nn.Module:
    """A student's network, with the moving average of its weights where the run has one."""
    model = build(recipe.students[index].architecture, num_classes, image_px=recipe.views.size_px, seed=0)
    weights = prefixed(tensors, f"{'average' if recipe.train.ema_decay else 'student'}.{index}.")
    require_like(weights, model.state_dict(), f"student {index} of the checkpoint")
    load_weights(model, weights)
    return FlipAveraged(model) if recipe.evaluation.flip_tta else model
