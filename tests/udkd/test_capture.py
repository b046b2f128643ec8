"""What a CUDA graph records, rehearsed without a GPU: tensors of the meta device have shapes but no numbers.

A step must not ask the device for a number, copy between host and device, or mix the two. All three are errors while a
stream is captured, and none of them shows on a CPU.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common.rig import TableLessons, frozen, view_table
from tests.small import small_recipe
from udkd.engine.assembly import assemble
from udkd.engine.drives import GraphRecorder, Resident
from udkd.engine.lessons import LiveLessons
from udkd.engine.step import Tally
from udkd.formats.cache import DeviceTable
from udkd.formats.config import Recipe
from udkd.parts.average import Average
from udkd.parts.frozen_teacher import FrozenTeacher
from udkd.parts.methods.objective import MIXED_ROWS
from udkd.parts.panel import Panel
from udkd.parts.plan import Plan, row_of
from udkd.parts.students import Student, _still, make_students
from udkd.words.batch import Batch
from udkd.words.lesson import Lessons

META = torch.device("meta")
CLASSES = 100
TORCH_GRAPH = torch.cuda.graph


class OnTheDeviceAlone(TorchDispatchMode):
    """Refuses what a capture would: copies between devices, and operations that mix them (a scalar on the host is a number)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        sizeable = {tensor.device.type for tensor in tensors if tensor.dim() or func.overloadpacket in COPIES}
        assert sizeable <= {"meta"}, f"{func} on {[(tensor.device.type, list(tensor.shape)) for tensor in tensors]}"
        return result


COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)


class StubCuda:
    """torch.cuda's streams and graphs, as far as a recording calls them; what is "captured" runs at once."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.replays = 0

    def stream_class(self, device: object = None) -> Any:
        stub = self

        class Stream:
            def __init__(self) -> None:
                self.device = torch.device(device) if device is not None else META  # type: ignore[arg-type]

            def wait_stream(self, other: object) -> None:
                stub.log.append("wait")

        return Stream()

    @contextlib.contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.log.append("rehearse")
        yield

    @contextlib.contextmanager
    def graph(self, *args: Any, **options: Any) -> Iterator[None]:
        inspect.signature(TORCH_GRAPH.__init__).bind(None, *args, **options)  # the real one takes these too
        self.log.append("capture")
        with OnTheDeviceAlone():
            yield

    def graph_class(self) -> Any:
        stub = self

        class Graph:
            def replay(self) -> None:
                stub.replays += 1

        return Graph()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> StubCuda:
    stub = StubCuda()
    side = stub.stream_class()
    for name, value in {
        "Stream": stub.stream_class,
        "current_stream": lambda device=None: side,
        "stream": stub.stream,
        "graph": stub.graph,
        "CUDAGraph": stub.graph_class,
        "graph_pool_handle": lambda: (0, 1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())  # it changes dtypes alone
    # Without numbers the CPU's kernel stands in for CUDA's, and that one reads the learning rate on the host.
    monkeypatch.setattr(torch, "_fused_sgd_", fused_sgd)
    return stub


def fused_sgd(weights: list[Tensor], grads: list[Tensor], momenta: list[Tensor], *, lr: Tensor, **options: Any) -> None:
    """CUDA's kernel takes the multi-tensor way only where all lie in memory alike; it reads lr on the device."""
    assert lr.device == META
    assert not options["is_first_step"]
    for weight, grad, momentum in zip(weights, grads, momenta, strict=True):
        assert weight.device == grad.device == momentum.device == META
        strides = [[step for step, size in zip(t.stride(), t.shape, strict=True) if size > 1] for t in (weight, grad, momentum)]
        assert strides[0] == strides[1] == strides[2]


def moved(model: nn.Module) -> nn.Module:
    """The network with weights that lie on the other device in the same layout and have no numbers."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                like = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device=META)
                module._parameters[name] = nn.Parameter(like, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=META)
    return model


def moved_student(student: Student) -> Student:
    """A student that was made on the CPU."""
    model = moved(student.model)
    average = None if student.average is None else Average(model=moved(student.average.model))
    options = {**student.optimizer.defaults, "lr": 0.0, "fused": False}  # the constructor asks for numbers and for a real GPU
    optimizer = torch.optim.SGD(model.parameters(), **options)
    optimizer.param_groups[0] |= {"lr": torch.zeros((), device=META), "fused": True}
    optimizer._need_device_dtype_check_for_fused = False
    _still(optimizer, model.parameters())
    return replace(student, model=model, average=average, optimizer=optimizer)


def drive_of(
    recipe: Recipe, students: Sequence[Student], teacher: FrozenTeacher, record: Callable[..., Callable[[], None]]
) -> tuple[Resident, Plan, Tally]:
    canvas = torch.zeros(16, 36, 36, 3, dtype=torch.uint8, device=META)
    rows = Batch(ids=torch.arange(16, device=META), canvas=canvas, labels=torch.zeros(16, dtype=torch.int64, device=META))
    students = [moved_student(student) for student in students]
    logits_NC = torch.zeros(16, CLASSES, dtype=torch.float16, device=META)
    lessons: Lessons = TableLessons(DeviceTable({"logits": logits_NC}, torch.ones(16, device=META), CLASSES))
    live = recipe.teacher.source == "live"
    if live:
        teacher = replace(teacher, model=moved(teacher.model), device=META)
        lessons = LiveLessons(
            Panel(members=(teacher,), estimator=recipe.teacher.estimation, storage=recipe.teacher.stored), None
        )
    step = assemble(recipe, recipe.views.spec, students, lessons, META)
    plan = Plan.of(recipe, 0, 2, 0, view_table(recipe, 16, 36, META), META)
    tally = Tally.empty(len(students), META, MIXED_ROWS if recipe.is_mixed else ())
    ids = np.arange(16, dtype=np.int64)
    return Resident(step, rows, 8, tally, ids=ids, by_id=not live, record=record), plan, tally


RECIPES: dict[str, Sequence[str]] = {
    "the paper's": (),
    "averaged": ("train.average=0.9",),
    "levers": ("tune.saved_relu6=true", "tune.gathered_pool=true"),
    "live teacher": ('teacher.source="live"', "teacher.views=1"),
    "moving weights": ('loss.schedules.beta.shape="linear"', "loss.schedules.beta.to=0.1"),
    "channels first": ("train.channels_last=false",),
    "residual": ("students=[{architecture='resnet18'}, {architecture='mobilenet_v2'}]",),
    "streams": ("tune.streams=true",),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_can_be_recorded(cuda: StubCuda, name: str) -> None:
    recipe = small_recipe(*RECIPES[name])
    students = make_students(recipe, CLASSES, torch.device("cpu"))
    teacher = frozen(recipe, torch.device("cpu"), "squeezenet1_1", compile=False)
    drive, plan, tally = drive_of(recipe, students, teacher, GraphRecorder(META))
    assert list(drive.epoch(np.arange(16, dtype=np.int64), plan, tally)) == [8, 8]
    assert list(drive.epoch(np.arange(16, dtype=np.int64)[::-1].copy(), plan, tally)) == [8, 8]
    assert [word for word in cuda.log if word == "capture"] == ["capture"], "recorded once, for all epochs"
    assert cuda.log[:2] == ["wait", "rehearse"], "the side stream waits for what was done before"
    assert cuda.replays == 4


def test_the_check_sees_what_a_capture_refuses(cuda: StubCuda) -> None:
    values, place = torch.zeros(4, 2, device=META), torch.zeros((), dtype=torch.int64, device=META)
    with pytest.raises(RuntimeError, match="item"):
        values[place]
    assert row_of(values, place).shape == (2,)
    with OnTheDeviceAlone(), pytest.raises(AssertionError, match="_to_copy"):
        torch.tensor(0.5).to(META)
    with OnTheDeviceAlone(), pytest.raises(AssertionError):
        torch.zeros(2)
