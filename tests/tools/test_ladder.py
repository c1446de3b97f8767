"""The ladder measures each row undisturbed by the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from lib_accel.model import presets
from lib_accel.model.random_weights import random_weights
from lib_accel.model.unet import UNet
from lib_accel.tools.bench import ladder, stock
from lib_accel.tools.bench.ladder import Ladder, Plan
from lib_accel.tools.bench.measure import Row
from lib_accel.tools.bench.peers import Reference
from lib_accel.tools.bench.table import table
from lib_accel.tools.bench.variants import VARIANTS, WITHOUT_DIFFUSERS, Built, Setup, Variant
from lib_accel.tools.bench.weights import WeightCopy

from .checkpoint_files import TINY

CPU = torch.device("cpu")

MIB = 2**20

Layout = tuple[tuple[int, ...], int]  # strides and address


class Observer:
    """Builds rows that write down the layout of their weights at every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Layout]]] = []

    def build(self, name: str, setup: Setup, channels_last: bool) -> Built:
        unet = setup.weights.unet
        if channels_last:  # as compiled code does on a GPU, where its first row is built
            for p in unet.parameters():
                if p.ndim == 4:
                    p.data = p.data.contiguous(memory_format=torch.channels_last)

        def call() -> Tensor:
            self.calls.append((name, [(p.stride(), p.data_ptr()) for p in unet.parameters()]))
            return unet(*setup.inputs)

        return Built(call)

    def layouts(self, name: str) -> list[list[Layout]]:
        return [layout for of, layout in self.calls if of == name]


@pytest.fixture
def observer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Observer]:
    """Two rows, `plain` and `compiled`; building the second changes the layout of its weights."""
    observer = Observer()
    for name, channels_last in (("plain", False), ("compiled", True)):

        def build(setup: Setup, name: str = name, channels_last: bool = channels_last) -> Built:
            return observer.build(name, setup, channels_last)

        monkeypatch.setitem(VARIANTS, name, Variant(name, build))
    monkeypatch.setattr(ladder, "MERGED", ("plain", "compiled"))
    monkeypatch.setattr(ladder, "matmul_rate", lambda *_: 1e12)
    return observer


def plan(**options: object) -> Plan:
    base = {"variants": ("plain", "compiled"), "size": 64, "rounds": 3}
    return Plan(TINY, CPU, torch.float32, **(base | options))  # type: ignore[arg-type]


def test_no_row_changes_the_weights_of_another(observer: Observer) -> None:
    result = Ladder(plan(loras=(0, 1), profile=True)).measure()
    assert result["together"]
    before, *later = observer.layouts("plain")
    convolution = next(strides for strides, _ in before if len(strides) == 4)
    assert convolution[1] > 1, "plain memory, not channels-last"
    assert all(layout == before for layout in later)
    other = observer.layouts("compiled")[-1]
    assert [strides for strides, _ in other] != [strides for strides, _ in before]
    assert not {address for _, address in other} & {address for _, address in before}


def test_copies_that_do_not_fit_together_take_turns(
    observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "copies_that_fit", lambda *_: 1)
    measured = Ladder(plan(loras=(0, 1)))
    result = measured.measure()
    assert not result["together"]
    assert all(row["error"] < 1e-5 for row in result["rows"])
    assert all(len(row.seconds) == 3 for row in measured.rows.values())
    turns = [name for name, _ in observer.calls]
    changes = [a for a, b in zip(turns, [*turns[1:], ""], strict=True) if a != b]
    assert changes[:8] == ["plain", "compiled"] * 4, "built in turn, then timed in three turns"
    for name in ("plain", "compiled"):
        strides = [[s for s, _ in layout] for layout in observer.layouts(name)]
        assert all(s == strides[0] for s in strides), "a copy comes back in its layout"
    assert all(p.numel() == 0 for c in measured._copies.values() for p in c.parameters.values())


class NoCopies(TorchFunctionMode):
    """Skips `copy_`: fake tensors hold no values, and a torch without CUDA cannot copy to them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.copy_ else func(*args, **(kwargs or {}))


def test_copies_on_a_gpu_do_not_share_memory_layouts() -> None:
    """Fake CUDA tensors have layouts and need no GPU."""
    values = {name: p.data for name, p in random_weights(TINY, torch.float32, 0).items()}
    name = "input_blocks.1.0.in_layers.2.weight"
    with FakeTensorMode(allow_non_fake_inputs=True), NoCopies():
        ours, theirs = (WeightCopy(TINY, values, torch.device("cuda")) for _ in range(2))
        weight = ours.unet.get_parameter(name)
        weight.data = weight.data.to(memory_format=torch.channels_last)
        assert weight.device.type == "cuda"
        assert weight.stride() == (288, 1, 96, 32)
        assert theirs.unet.get_parameter(name).stride() == (288, 9, 3, 1)
        ours.unload()
        ours.load()
        assert ours.unet.get_parameter(name).stride() == (288, 1, 96, 32)


def test_weights_come_back_with_their_values() -> None:
    values = {name: p.data for name, p in random_weights(TINY, torch.float16, 0).items()}
    copy = WeightCopy(TINY, values, CPU)
    held = dict(copy.unet.named_parameters())
    copy.unload()
    copy.load()
    assert all(held[name] is p for name, p in copy.unet.named_parameters())
    assert all(torch.equal(held[name], value) for name, value in values.items())


LATER_CALL = """
import torch
from lib_accel.tools.bench.measure import peak

held, calls = [], []

def call():
    calls.append(1)
    if len(calls) == 2:
        held.append(torch.ones(16 * 1024**2))  # 64 MiB
    return torch.ones(1)

print(peak(call, torch.device("cpu")))
"""


def test_memory_that_a_later_call_takes_is_counted(root: Path) -> None:
    """A CUDA graph is recorded in the second call of a shape.

    In a process of its own: here, memory that other tests free may hide what a call takes.
    """
    command = [sys.executable, "-c", LATER_CALL]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    assert 60 * MIB < int(done.stdout) < 200 * MIB


@pytest.mark.parametrize("most", [32 * 2**20, 2**16, 2**10])
@pytest.mark.parametrize("name", presets.PRESETS)
def test_the_webui_s_way_computes_the_same(
    name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention in one piece, in slices of whole heads, and in slices of a head's rows."""
    monkeypatch.setattr(stock, "CPU_SLICE_BYTES", most)
    small = {"context_dim": 48} | ({"adm_channels": 40} if name.startswith("sdxl") else {})
    architecture = presets.PRESETS[name](64, **small)
    parameters = random_weights(architecture, torch.float32, 0)
    inputs = ladder.make_inputs(architecture, 2, 72, 7, CPU, torch.float32)
    with torch.no_grad():
        expected = UNet(architecture).adopt(parameters)(*inputs)
        for sdpa in (False, True):
            found = stock.stock_unet(architecture, parameters, sdpa)(*inputs)
            assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max())


def test_rows_without_diffusers_are_our_own_plain_unet_and_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.models.attention_processor", None)
    monkeypatch.setattr(ladder, "matmul_rate", lambda *_: 1e12)
    seen: list[tuple[str, bool]] = []

    def on_row(row: Row) -> None:
        seen.append((row.name, row.one_call_s > 0))

    plain = plan(variants=("reference", "reference+sdpa", "stock+sdpa"), rounds=1)
    result = Ladder(plain, on_row=on_row).measure()
    assert [row["error"] < 1e-5 for row in result["rows"]] == [True] * 3
    notes = [row["note"] for row in result["rows"]]
    assert notes == [WITHOUT_DIFFUSERS, WITHOUT_DIFFUSERS, ""]
    assert f"- reference: {WITHOUT_DIFFUSERS}" in table(result)
    assert seen[:4] == [
        ("reference", False),
        ("reference", True),
        ("reference+sdpa", False),
        ("reference+sdpa", True),
    ], "a crash is laid to the row that was begun last"


@pytest.mark.parametrize("sdpa", [False, True])
@pytest.mark.parametrize("name", presets.PRESETS)
def test_the_reference_computes_the_same_from_the_same_parameters(name: str, sdpa: bool) -> None:
    pytest.importorskip("diffusers")
    small = {"context_dim": 48} | ({"adm_channels": 40} if name.startswith("sdxl") else {})
    architecture = presets.PRESETS[name](64, **small)
    parameters = random_weights(architecture, torch.float32, 0)
    inputs = ladder.make_inputs(architecture, 2, 64, 7, CPU, torch.float32)
    with torch.no_grad():
        reference = Reference(architecture, parameters, sdpa)
        expected = UNet(architecture).adopt(parameters)(*inputs)
        assert torch.allclose(reference(*inputs), expected, atol=1e-4 * expected.abs().max())
    assert {id(p) for p in reference.parameters()} == {id(p) for p in parameters.values()}
