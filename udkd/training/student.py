"""Students: networks with their optimizers, built from a recipe."""

import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from udkd.augment.preprocessing import Preprocessing
from udkd.config.recipe import Recipe
from udkd.config.sections import StudentSection
from udkd.models.build import KeyedDropout, build, dropout_layers, load_weights, require_keyed_randomness
from udkd.models.ema import WeightEMA
from udkd.models.module_swaps import use_gathered_pool, use_saved_relu6
from udkd.training.loss_scale import LossScale
from udkd.training.optimizer import (
    allocate_state,
    decay_groups,
    make_optimizer,
    parameters_of,
    require_capturable,
    set_rate,
    state_of,
    step_unless,
)
from udkd.utils.errors import ConfigError, RunError
from udkd.utils.rng import Stream, key


@dataclass(frozen=True, kw_only=True)
class Student:
    """A network, its optimizer, and what is trained or averaged with it.

    index: its position in the recipe. dropout_layers: the layers that need a key each step. preprocessing: of its input.
    average: of its weights, where train.ema_decay is set. connector: layers of the loss's method, trained with it.
    clip_norm: of its gradients; 0: off. decay_1d: whether weight decay applies to biases and norms.
    frozen_norms: batch norms whose parameters are frozen; they keep their statistics.
    """

    index: int
    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    dropout_layers: list[KeyedDropout]
    preprocessing: Preprocessing
    average: WeightEMA | None
    connector: nn.Module | None = None
    clip_norm: float = 0.0
    decay_1d: bool = True
    frozen_norms: tuple[nn.Module, ...] = ()

    def set_step_inputs(self, lr: Tensor, dropout_key: Tensor) -> None:
        """Set what depends only on the step's number: the learning rate and the key of the dropout's randomness, scalars."""
        set_rate(self.optimizer, lr)
        for layer in self.dropout_layers:
            layer.key.copy_(dropout_key)

    def set_part(self, part: int) -> None:
        """Set which part of the batch the next forward pass sees, so that its dropout is that of the complete batch."""
        for layer in self.dropout_layers:
            layer.set_part(part)

    def optimizer_step(self, ema_rate: Tensor, loss_scale: LossScale | None = None) -> Tensor | None:
        """Apply the gradients and drop them. ema_rate: how far the averaged weights move, a scalar.

        loss_scale: of the gradients. Then returns 1 where they were not finite and so not applied, else 0: float32 [].
        """
        found_inf = None
        if loss_scale is not None:
            found_inf = loss_scale.unscale([p.grad for p in parameters_of(self.optimizer) if p.grad is not None])
        if self.clip_norm:
            nn.utils.clip_grad_norm_(parameters_of(self.optimizer), self.clip_norm)
        if found_inf is None:
            self.optimizer.step()
        else:
            step_unless(self.optimizer, found_inf)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, ema_rate)
        return found_inf

    def train_mode(self) -> None:
        """Put the network into training mode."""
        self.model.train()
        for norm in self.frozen_norms:
            norm.eval()

    @property
    def eval_model(self) -> nn.Module:
        """The network that is evaluated: the averaged one where train.ema_decay is set."""
        return self.model if self.average is None else self.average.model

    def with_connector(self, connector: nn.Module) -> "Student":
        """The same student, whose optimizer trains `connector` too."""
        for group in decay_groups(connector.named_parameters(), decay_1d=self.decay_1d):
            self.optimizer.add_param_group(group)  # shares the learning rate tensor of the other weights
        allocate_state(self.optimizer)
        return replace(self, connector=connector)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load another network's weights; those that are absent stay. Raises RunError where they do not fit."""
        weights = self.model.state_dict() | dict(weights)
        require_like(weights, self.model.state_dict(), f"the initial weights of {self.name}")
        for model in [self.model, *([self.average.model] if self.average else [])]:
            load_weights(model, weights)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers, the optimizer's state and averages, by name: all that a checkpoint holds of a student."""
        state = {f"student.{self.index}.{name}": value for name, value in self.model.state_dict().items()}
        if self.connector is not None:
            state |= {f"connector.{self.index}.{name}": value for name, value in self.connector.state_dict().items()}
        state |= self._optimizer_state()
        if self.average is not None:
            state |= {f"average.{self.index}.{name}": value for name, value in self.average.model.state_dict().items()}
        return state

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`, in place."""
        load_weights(self.model, prefixed(tensors, f"student.{self.index}."))
        if self.connector is not None:
            self.connector.load_state_dict(prefixed(tensors, f"connector.{self.index}."))
        for name, value in self._optimizer_state().items():
            value.copy_(tensors[name])
        if self.average is not None:
            load_weights(self.average.model, prefixed(tensors, f"average.{self.index}."))

    def restore_weights(self, tensors: dict[str, Tensor], where: str) -> None:
        """Restore only the evaluated network; the checkpoint may hold connectors. Raises RunError where it does not fit."""
        kind = "student" if self.average is None else "average"
        weights = prefixed(tensors, f"{kind}.{self.index}.")
        require_like(weights, self.eval_model.state_dict(), f"{self.name} in {where}")
        load_weights(self.eval_model, weights)

    def mutable_state(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        averaged = [] if self.average is None else list(self.average.model.state_dict().values())
        connector = [] if self.connector is None else [*self.connector.parameters(), *self.connector.buffers()]
        weights = [*self.model.parameters(), *self.model.buffers(), *connector]
        return [*weights, *averaged, *state_of(self.optimizer)]

    def _optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's tensors by their names in a checkpoint: momentum.INDEX.NAME (SGD), optimizer.INDEX.KIND.NAME."""
        sgd = isinstance(self.optimizer, torch.optim.SGD)
        return {
            f"momentum.{self.index}.{name}" if sgd else f"optimizer.{self.index}.{kind}.{name}": value
            for name, parameter in self._parameters()
            for kind, value in self.optimizer.state[parameter].items()
        }

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trained parameter; the connector's names have a prefix that no network has."""
        yield from self.model.named_parameters()
        if self.connector is not None:
            for name, parameter in self.connector.named_parameters():
                yield f"connector:{name}", parameter


def make_students(recipe: Recipe, num_classes: int, device: torch.device) -> list[Student]:
    """Build every student of a recipe on a device, with initial weights drawn by (train.seed, index)."""
    return [
        _make(recipe, index, name, section, num_classes, device)
        for index, (name, section) in enumerate(zip(recipe.student_names(), recipe.students, strict=True))
    ]


def _make(recipe: Recipe, index: int, name: str, section: StudentSection, num_classes: int, device: torch.device) -> Student:
    if recipe.train.cuda_graph and device.type == "cuda":
        require_capturable(section.optimizer, device.type)
    seed = int(key(recipe.train.seed, Stream.INITIAL_WEIGHTS, index)[0] >> 1)
    model = build(section.architecture, num_classes, image_px=recipe.views.size_px, seed=seed)
    for size_px in {recipe.views.size_px, recipe.train.progressive_px or recipe.views.size_px}:
        require_keyed_randomness(section.architecture, num_classes, size_px)
    frozen_norms = _freeze(model, section.frozen, name)
    if recipe.perf.saved_relu6:
        model = use_saved_relu6(model)
    if recipe.perf.gathered_pool or (recipe.train.deterministic and device.type == "cuda"):  # PyTorch's adds in any order
        model = use_gathered_pool(model)
    model = model.to(device)
    if recipe.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return Student(
        index=index,
        name=name,
        model=model,
        optimizer=make_optimizer(section, trained, device, no_decay=_no_decay(model)),
        dropout_layers=dropout_layers(model),
        preprocessing=recipe.student_preprocessing(index),
        average=WeightEMA.of(model) if recipe.train.ema_decay else None,
        clip_norm=section.clip_norm,
        decay_1d=section.decay_1d,
        frozen_norms=frozen_norms,
    )


def _no_decay(model: nn.Module) -> Collection[str]:
    """Names of parameters that a network itself excludes from weight decay, as timm's transformers do."""
    names: Callable[[], Collection[str]] = getattr(model, "no_weight_decay", tuple)
    return names()


def _freeze(model: nn.Module, patterns: Sequence[str], name: str) -> tuple[nn.Module, ...]:
    """Freeze the parameters that match any pattern. Returns the norms with running statistics that are frozen altogether.

    ConfigError: a pattern that matches none, or all are frozen. Source: timm.utils.freeze, which also freezes such norms.
    """
    names = [parameter for parameter, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"students.*.frozen holds {pattern!r}, which no parameter of {name} matches; expected a pattern of names "
                f"such as {', '.join(names[:3])}; correct it"
            )
    for parameter_name, parameter in model.named_parameters():
        if any(fnmatch.fnmatchcase(parameter_name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"students.*.frozen freezes all of {name}; expected parameters to train, such as the head's")
    norms = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    return tuple(norm for norm in norms if patterns and not any(p.requires_grad for p in norm.parameters()))


def require_like(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    """RunError naming the first tensor of `where` that is missing, unknown, of another dtype or shape, or not finite."""
    for name in [*wanted, *(name for name in tensors if name not in wanted)]:
        if name not in tensors or name not in wanted:
            state = "lacks" if name in wanted else "also holds"
            raise RunError(f"{where} {state} {name}; expected a checkpoint of this recipe; restore it or train again")
        has, expected = ((tensor.dtype, tuple(tensor.shape)) for tensor in (tensors[name], wanted[name]))
        if has != expected:
            raise RunError(f"{name} of {where} is {has}; expected {expected}; restore it or train again")
        if tensors[name].is_floating_point() and not tensors[name].isfinite().all():
            raise RunError(f"{name} of {where} is not finite; expected numbers; restore it or train again")


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
