"""What an engine is called with, seen by a recorder with the interface of an execution context."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_accel.compile.backends.tensorrt import load, run
from lib_accel.compile.backends.tensorrt.engines import Wanted
from lib_accel.compile.backends.tensorrt.network import unit_network
from lib_accel.compile.backends.tensorrt.run import KERNELS_S, Call, EngineFn
from lib_accel.model.specs import ResBlock
from lib_accel.store import ArtifactStore, groups

from .. import tiny

BYTES = 4096


@dataclass
class Recorder:
    """Stands in for TensorRT's IExecutionContext, which needs a GPU."""

    works: bool = True
    capturable: bool = True
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    set: list[str] = field(default_factory=list)  # names of tensors, in the order of their setting
    memory: list[int] = field(default_factory=list)
    runs: int = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape[0] <= 16

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        self.set.append(name)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return BYTES * self.shapes["h"][0]

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory.append(size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.capturable

    def execute_async_v3(self, stream: int) -> bool:
        self.runs += 1
        return self.works


@pytest.fixture
def context() -> Recorder:
    return Recorder()


@pytest.fixture
def call(context: Recorder, monkeypatch: pytest.MonkeyPatch) -> Call:
    stream = type("Stream", (), {"cuda_stream": 7})()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return Call(context, ["h", "side"], ["a", "b"], lambda: "no reason")


def tensors(batch: int = 2) -> tuple[list[Tensor], list[Tensor], Tensor]:
    return (
        [torch.empty(batch, 8, 4, 4), torch.empty(batch, 16)],
        [torch.empty(8), torch.empty(8, 8)],
        torch.empty(batch, 8, 4, 4),
    )


def test_each_tensor_is_bound_once_to_where_it_lies(context: Recorder, call: Call):
    activations, weights, out = tensors()
    call(activations, weights, out)
    call(activations, weights, out)
    names = ["h", "side", "a", "b", "out"]
    assert context.set == names
    found = [context.addresses[name] for name in names]
    assert found == [t.data_ptr() for t in (*activations, *weights, out)]
    assert context.runs == 2


def test_a_weight_that_has_moved_is_bound_again(context: Recorder, call: Call):
    activations, weights, out = tensors()
    call(activations, weights, out)
    context.set.clear()
    weights[1] = torch.empty(8, 8)
    call(activations, weights, out)
    assert context.set == ["b"]
    assert context.addresses["b"] == weights[1].data_ptr()


def test_memory_is_asked_for_the_shapes_of_the_call(context: Recorder, call: Call):
    for batch in (2, 2, 5):
        call(*tensors(batch))
    assert context.memory == [2 * BYTES, 2 * BYTES, 5 * BYTES]
    assert context.shapes == {"h": (5, 8, 4, 4), "side": (5, 16)}


def test_a_shape_that_tensorrt_refuses_is_named_and_tried_again(context: Recorder, call: Call):
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"refuses h \[17, 8, 4, 4\]"):
            call(*tensors(17))
    assert context.runs == 0
    call(*tensors(2))
    assert context.runs == 1


def test_a_call_that_fails_tells_why(context: Recorder, call: Call):
    context.works = False
    with pytest.raises(RuntimeError, match="TensorRT failed: no reason"):
        call(*tensors())


def test_a_call_that_cannot_be_recorded_says_so(
    context: Recorder, call: Call, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run, "_records", lambda device: True)
    call(*tensors())
    context.capturable = False
    with pytest.raises(RuntimeError, match="TensorRT cannot be recorded at this size"):
        call(*tensors())
    assert context.runs == 1


UNIT = ResBlock(8, 8, 16)


@dataclass
class Engine:
    """Stands in for an engine that is read."""

    made: Recorder

    def context(self) -> Recorder:
        return self.made

    def last_error(self) -> str:
        return "no reason"


@pytest.fixture
def fn(context: Recorder, call: Call, monkeypatch: pytest.MonkeyPatch) -> EngineFn:
    sizes: list[int] = []
    fn = EngineFn(Engine(context), unit_network(UNIT), 8, True, lambda: sizes.append(1))  # type: ignore[arg-type]
    fn.sizes = sizes  # type: ignore[attr-defined]
    return fn


def given(batch: int = 2) -> list[Tensor]:
    return [torch.empty(batch, 8, 4, 4), torch.empty(batch, 8)]


def weights() -> list[Tensor]:
    return [torch.empty(shape) for shape in unit_network(UNIT).weights.values()]


def test_the_output_is_channels_last_and_bound(context: Recorder, fn: EngineFn):
    out = fn([*given(), *weights()])
    assert out.shape == (2, 8, 4, 4)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert context.addresses["out"] == out.data_ptr()
    assert [*context.addresses] == ["h", "side.0", *unit_network(UNIT).weights, "out"]


def test_sizes_outside_of_the_profile_and_too_little_memory_are_reasons(
    fn: EngineFn, monkeypatch: pytest.MonkeyPatch
):
    assert fn.why_not(given()) is None
    assert "up to 16 images" in str(fn.why_not(given(17)))
    monkeypatch.setattr(fn._call, "_free", lambda device: 100.0)
    why = fn.why_not(given())
    assert why == "TensorRT needs 0.0 GB for this size and 0.0 GB are free"


def test_a_size_is_settled_some_time_after_its_first_call(
    fn: EngineFn, monkeypatch: pytest.MonkeyPatch
):
    now = [1000.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    assert not fn.settled(given())
    for batch in (2, 3, 2):
        fn([*given(batch), *weights()])
    assert fn.sizes == [1, 1]  # type: ignore[attr-defined]
    assert not fn.settled(given())
    now[0] += KERNELS_S + 1
    assert fn.settled(given())
    assert not fn.settled(given(4))
    fn([*given(4), *weights()])
    assert fn.settled(given()), "another size does not unsettle it"


def test_kernels_are_kept_where_they_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load, "KERNELS_S", 0.0)
    wanted = Wanted(UNIT, "float16", "ampere+", "SD1", "1.7.1")
    target = tiny.target(device_name="NVIDIA GeForce RTX 3060")
    store = ArtifactStore(tmp_path)
    kernels = load.Kernels(store, wanted, target)
    assert kernels.read() == b""
    made = type("Engine", (), {"kernels": b"one"})
    kernels.keep_soon(made)  # type: ignore[arg-type]
    assert kernels._timer is not None
    kernels._timer.join()
    assert load.Kernels(store, wanted, target).read() == b"one"
    kernels.keep(b"one and another")
    assert load.Kernels(store, wanted, target).read() == b"one and another"
    other = tiny.target(device_name="NVIDIA GeForce RTX 4090")
    assert load.Kernels(store, wanted, other).read() == b""
    (group,) = groups(store.list())
    assert group.made_for == "1 unit, float16, TensorRT 1.7.1, NVIDIA GeForce RTX 3060"


def test_a_call_needs_the_memory_to_be_free(context: Recorder):
    call = Call(context, ["h", "side"], ["a", "b"], str, lambda device: 100.0)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"0\.0 GB are free"):
        call(*tensors())
    assert context.runs == 0
