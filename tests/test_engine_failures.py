"""Compiled code that fails or runs out of memory, and inputs that it was not made for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_accel.model.layers import build_layer
from lib_accel.runtime.bound.binding import INT32_LIMIT, CompiledLayer
from lib_accel.runtime.graphs import memory as memory_module

from . import tiny
from .threads import one_thread  # noqa: F401  (a fixture)
from .tiny import TINY, ready, served


@pytest.mark.parametrize("message", ["no kernel image\nand more", ""])
def test_code_that_fails_is_dropped_with_a_reason(tiny_store: Path, message: str):
    engine, given = ready(tiny_store), tiny.inputs()
    expected = tiny.engine(tiny_store).compute(*given)

    def broken(inputs: list[Tensor]) -> Tensor:
        raise RuntimeError(message)

    for layer in engine.compiled_layers().values():
        layer.unit = broken
    for _ in range(2):
        assert torch.equal(engine.compute(*given), expected)
    assert engine.status.state == "fallback"
    first_line = message.partition("\n")[0] or "RuntimeError"
    assert engine.status.reason == f"aoti: it failed while computing: {first_line}"
    assert engine.counters.accelerated_calls == 0


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("out of memory"), RuntimeError("API call failed")]
)
def test_out_of_memory_takes_what_is_kept_first(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
):
    errors = [0]
    monkeypatch.setattr(memory_module, "out_of_memory_errors", lambda device: errors[0])
    engine, given = ready(tiny_store), tiny.inputs()
    expected = served(engine, given)
    held = [True]  # what is kept, given up once
    engine.memory.add(lambda: bool(held) and held.pop())
    layer = engine.compiled_layers()["middle_block.0"]
    good = layer.unit

    def full_while_held(inputs: list[Tensor]) -> Tensor:
        if held:
            errors[0] += 1
            raise error
        return good(inputs)

    layer.unit = full_while_held
    assert torch.equal(served(engine, given), expected)
    assert not held


def test_out_of_memory_is_the_hosts_where_nothing_can_be_given_back(tiny_store: Path):
    engine, given = ready(tiny_store), tiny.inputs()

    def full(inputs: list[Tensor]) -> Tensor:
        raise torch.cuda.OutOfMemoryError("out of memory")

    engine.compiled_layers()["middle_block.0"].unit = full
    with pytest.raises(torch.cuda.OutOfMemoryError):
        engine.compute(*given)
    assert engine.status.state == "ready"


def test_running_out_of_memory_is_no_failure_of_the_code(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch
):
    """AOTInductor raises a plain RuntimeError; only the allocator's count of errors tells."""
    errors = [0]
    monkeypatch.setattr(memory_module, "out_of_memory_errors", lambda device: errors[0])
    engine, given = ready(tiny_store), tiny.inputs()
    expected = served(engine, given)
    layer = engine.compiled_layers()["middle_block.0"]
    good = layer.unit

    def full(inputs: list[Tensor]) -> Tensor:
        errors[0] += 1
        raise RuntimeError("aoti_torch_empty_strided(...) API call failed")

    layer.unit = full
    assert torch.equal(engine.compute(*given), tiny.clean(engine, *given))
    layer.unit = good
    assert torch.equal(served(engine, given), expected)
    assert engine.status.state == "ready"


def test_more_elements_than_32_bits_count_run_without_compiled_code():
    spec = dict(TINY.layers())["middle_block.1"]
    layer = CompiledLayer(lambda inputs: inputs[0], build_layer(spec), spec, torch.float32)
    pixels = INT32_LIMIT // (8 * 64)
    keys = torch.empty(1, 7, 64, device="meta")
    for count, fits in ((pixels - 1, True), (pixels, False)):
        h = torch.empty(1, 64, 1, count, device="meta")
        assert layer.fits([h, keys, keys]) == fits
