"""What an engine is called with, seen by a recorder with the interface of an execution context."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from lib_accel.compile.backends.tensorrt.run import Call

BYTES = 4096


@dataclass
class Recorder:
    """Stands in for TensorRT's IExecutionContext, which needs a GPU."""

    works: bool = True
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


def test_a_call_needs_the_memory_to_be_free(context: Recorder):
    call = Call(context, ["h", "side"], ["a", "b"], str, lambda device: 100.0)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"0\.0 GB are free"):
        call(*tensors())
    assert context.runs == 0
