"""What comes through skip connections goes into units on a GPU apart, and is never concatenated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.compile import units
from lib_accel.compile.accuracy import example_inputs
from lib_accel.compile.units import UnitFn, UnitModule, image_widths
from lib_accel.model.layers import build_layer
from lib_accel.model.specs import ResBlock, Spec
from lib_accel.runtime.bound import binding
from lib_accel.runtime.bound.binding import CompiledLayer

from . import tiny
from .standin.backends import Uncompiled, serve
from .threads import one_thread  # noqa: F401  (a fixture)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
OTHER_WIDTH, SAME_WIDTH = ResBlock(96, 64, 32, skip_channels=32), ResBlock(64, 64, 32, 32)


def on_a_gpu(unit: Spec, device: torch.device) -> tuple[int, ...]:
    return image_widths(unit, GPU)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give units on the CPU the inputs that those on a GPU take."""
    monkeypatch.setattr(binding, "image_widths", on_a_gpu)


@pytest.fixture
def concatenated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The channels of everything that was concatenated along the channels."""
    found: list[int] = []
    cat = torch.cat

    def watched(tensors: list[Tensor], dim: int = 0) -> Tensor:
        out = cat(tensors, dim)
        if out.ndim == 4:
            found.append(out.shape[1])
        return out

    monkeypatch.setattr(torch, "cat", watched)
    return found


def test_only_units_on_a_gpu_take_them_apart():
    assert units.image_widths(OTHER_WIDTH, GPU) == (64, 32)
    assert units.image_widths(OTHER_WIDTH, CPU) == (96,)
    assert units.image_widths(ResBlock(96, 64, 32), GPU) == (96,)


@pytest.mark.parametrize("unit", [OTHER_WIDTH, SAME_WIDTH])
@pytest.mark.parametrize("fused", [False, True])
def test_a_unit_computes_the_same_from_two_tensors_as_from_one(unit: ResBlock, fused: bool):
    (x, projected), weights = example_inputs(unit, (2, 5, 3, 1), torch.float64, CPU)
    parts = x.split(image_widths(unit, GPU), dim=1)
    with torch.no_grad():
        one = UnitModule(unit)([x, projected], weights)
        two = UnitModule(unit, fused=fused)([*parts, projected], weights)
    # a GPU's statistics are float32 at every precision
    assert tiny.error(two, one) < (1e-6 if fused else 1e-14)


def test_a_layer_takes_both_kinds_of_inputs(apart: None, concatenated: list[int]):
    given: list[list[Tensor]] = []

    def unit(inputs: list[Tensor]) -> Tensor:
        given.append(inputs)
        return inputs[0]

    layer = build_layer(OTHER_WIDTH)
    layer.to_empty(device="cpu")
    compiled = CompiledLayer(unit, layer, OTHER_WIDTH, torch.float32)
    emb = torch.randn(2, 32)
    h, skip = (
        torch.randn(2, channels, 4, 3).contiguous(memory_format=torch.channels_last)
        for channels in (64, 32)
    )
    compiled.join(h, skip, emb, emb)
    assert given[0][0] is h
    assert given[0][1] is skip
    assert concatenated == []
    compiled(torch.cat([h, skip], dim=1), emb, emb)  # as an extension that drives the layers
    for mine, theirs in zip(given[1], (h, skip), strict=False):
        assert torch.equal(mine, theirs)
        assert mine.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(4, 2), (5, 3)])
def test_tensors_of_two_sizes_go_to_the_clean_layer(apart: None, size: tuple[int, int]):
    """Compiled code would read past the end of the smaller one."""
    layer = build_layer(OTHER_WIDTH)
    layer.to_empty(device="cpu")
    compiled = CompiledLayer(lambda inputs: inputs[0], layer, OTHER_WIDTH, torch.float32)
    h, skip, emb = torch.randn(2, 64, 4, 3), torch.randn(2, 32, *size), torch.randn(2, 32)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        compiled.join(h, skip, emb, emb)


class Watched(Uncompiled):
    """Units that torch computes; those that take two images are noted."""

    joined: list[Spec]

    def code(self, unit: Any) -> UnitFn:
        compute = super().code(unit)

        def watched(inputs: list[Tensor]) -> Tensor:
            if [t.ndim for t in inputs[:3]] == [4, 4, 2]:
                self.joined.append(unit)
            return compute(inputs)

        return watched


@pytest.mark.parametrize("size", [(16, 16), (17, 15)])
def test_every_output_block_takes_them_apart(
    apart: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: tuple[int, int]
):
    serve(monkeypatch, Watched)
    monkeypatch.setattr(Watched, "joined", [], raising=False)
    engine = tiny.engine(tmp_path / "store")
    engine.prepare()
    given = tiny.inputs(height=size[0], width=size[1])
    out = tiny.served(engine, given)
    assert tiny.error(out, tiny.clean(engine, *given)) < 1e-6
    assert Watched.joined == [block[0] for block in tiny.TINY.output_blocks]
