"""A UNet that a backend computes at once, as TensorRT does, and by layers where it cannot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.compile.jobs import CompiledUnits
from lib_accel.compile.target import Target
from lib_accel.compile.units import UnitFn
from lib_accel.model.specs import Embedding
from lib_accel.model.unet import UNet

from . import tiny
from .standin.backends import Uncompiled, serve
from .threads import one_thread  # noqa: F401  (a fixture)

RAN: Counter[str] = Counter()


class Whole:
    """A compiled UNet that torch computes from the tensors it is given."""

    def __init__(self, architecture: Any):
        self._unet, self._names = UNet(architecture), []
        self._names = [name for name, _ in self._unet.named_parameters()]
        self._takes_y = architecture.adm_channels is not None

    def why_not(self, activations: list[Tensor]) -> str | None:
        return "too large" if activations[0].shape[-1] > 24 else None

    kept_bytes = 7
    images = 0

    def give_up(self) -> bool:
        RAN["given up"] += 1
        return True

    def begin_image(self) -> None:
        self.images += 1

    def settled(self, activations: list[Tensor]) -> bool:
        return activations[0].shape[-2] != 24

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        RAN["whole"] += 1
        assert all(t.is_contiguous() for t in tensors)
        count = 4 if self._takes_y else 3
        weights = dict(zip(self._names, tensors[count:], strict=True))
        return torch.func.functional_call(self._unet, weights, tuple(tensors[:count]))


class Unit:
    """A compiled unit that counts its calls and has a limit of its own."""

    def __init__(self, compute: UnitFn):
        self._compute = compute

    def why_not(self, activations: list[Tensor]) -> str | None:
        return "too many" if activations[0].shape[0] > 4 else None

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        assert self.why_not(tensors) is None
        RAN["unit"] += 1
        return self._compute(tensors)


class AtOnce(Uncompiled):
    """A backend that computes whole UNets, and layers."""

    name = "at once"
    channels_last = False

    def make(self, target: Target, store: Any) -> CompiledUnits:
        assert target.architecture is not None
        return {**super().make(target, store), target.architecture: Whole(target.architecture)}

    def code(self, unit: Any) -> UnitFn:
        compute = super().code(unit)
        return compute if isinstance(unit, Embedding) else Unit(compute)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, AtOnce)
    RAN.clear()


def prepared(store: Path, architecture: Any = tiny.TINY, **options: Any) -> tiny.Engine:
    engine = tiny.engine(store, architecture, **options)
    engine.prepare()
    return engine


@pytest.mark.parametrize("architecture", [tiny.TINY, tiny.WITH_Y], ids=["plain", "with y"])
def test_a_call_is_computed_at_once(tmp_path: Path, architecture: Any):
    engine, given = prepared(tmp_path, architecture), tiny.inputs(architecture)
    out = engine.compute(*given)
    assert RAN == {"whole": 1}
    expected = tiny.exact(engine.network, architecture, given)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_size_that_it_does_not_know_is_computed_by_layers_with_a_reason(tmp_path: Path):
    engine, given = prepared(tmp_path), tiny.inputs(width=32)
    out = engine.compute(*given)
    assert RAN["whole"] == 0
    assert RAN["unit"] > 0
    assert engine.status.reason == "too large"
    expected = tiny.exact(engine.network, tiny.TINY, given)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    engine.compute(*tiny.inputs())
    assert RAN["whole"] == 1
    assert engine.status.reason is None


def test_a_size_that_its_layers_do_not_know_either_is_computed_without_code(tmp_path: Path):
    engine, given = prepared(tmp_path), tiny.inputs(batch=5, width=32)
    out = engine.compute(*given)
    assert RAN["whole"] == 0
    assert engine.status.state == "ready"
    assert engine.status.reason == "too large"
    expected = tiny.exact(engine.network, tiny.TINY, given)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_call_is_settled_where_its_code_is(tmp_path: Path):
    engine = prepared(tmp_path)
    for height, settled in ((16, True), (24, False), (16, True)):
        engine.compute(*tiny.inputs(height=height))
        assert engine.settled is settled


def test_what_it_keeps_is_counted_and_given_up(tmp_path: Path):
    engine = prepared(tmp_path)
    assert engine.status.kept_bytes == 7
    assert engine.memory.give_up()
    assert RAN["given up"] == 1
    engine.close()
    assert RAN["given up"] == 2
    assert engine.status.kept_bytes == 0


def test_it_is_told_when_an_image_begins(tmp_path: Path):
    engine = prepared(tmp_path)
    engine.compiled.begin_image()
    whole: Any = engine.units[tiny.TINY]
    assert whole.images == 1


def test_a_reason_ends_with_the_code_that_it_was_about(tmp_path: Path):
    engine = prepared(tmp_path)
    engine.compute(*tiny.inputs(width=32))
    assert engine.status.reason == "too large"
    engine.close()
    assert engine.status.reason is None


def test_a_weight_that_changes_in_place_or_moves_is_seen(tmp_path: Path):
    engine, given = prepared(tmp_path), tiny.inputs()
    parameter = dict(engine.network.named_parameters())["middle_block.0.in_layers.2.weight"]
    before = engine.compute(*given)
    with torch.no_grad():
        parameter.mul_(2)
    changed = engine.compute(*given)
    assert not torch.equal(before, changed)
    parameter.data = parameter.data / 2
    torch.testing.assert_close(engine.compute(*given), before)
    assert RAN["whole"] == 3
    assert RAN["unit"] == 0


def test_layers_that_somebody_else_computes_are_left_to_layers(tmp_path: Path):
    engine, given = prepared(tmp_path), tiny.inputs()
    name = "middle_block.0"
    out = engine.compute(*given, replaced={name: engine.clean.layers[name]})
    assert RAN["whole"] == 0
    assert RAN["unit"] > 0
    torch.testing.assert_close(out, engine.compute(*given), rtol=1e-4, atol=1e-4)


def test_a_bias_that_the_architecture_lacks_is_computed_by_layers(tmp_path: Path):
    engine = prepared(tmp_path)
    layer = engine.network.get_submodule("middle_block.1.transformer_blocks.0.attn1.to_q")
    layer.bias = torch.nn.Parameter(torch.randn(layer.weight.shape[0]), requires_grad=False)
    engine.compute(*tiny.inputs())
    assert RAN["whole"] == 0
