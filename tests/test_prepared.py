"""The time embedding and all its projections, which one unit computes for all layers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.compile.units import UnitFn
from lib_accel.model.architecture import Architecture
from lib_accel.model.layers import ResBlock

from . import tiny
from .standin.backends import Uncompiled, serve
from .threads import one_thread  # noqa: F401  (a fixture)

BLOCKS = [name for name, spec in tiny.TINY.layers() if type(spec).__name__ == "ResBlock"]


class Counted(Uncompiled):
    """Units that torch computes, counted by their kind."""

    ran: Counter[str]

    def code(self, unit: Any) -> UnitFn:
        compute = super().code(unit)

        def counted(inputs: list[Tensor]) -> Tensor:
            self.ran[type(unit).__name__] += 1
            return compute(inputs)

        return counted


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    serve(monkeypatch, Counted)
    monkeypatch.setattr(Counted, "ran", Counter(), raising=False)
    return Counted.ran


@pytest.fixture
def projected(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The residual blocks whose projection torch has computed, one entry each time."""
    found: list[object] = []
    prepare = ResBlock.prepare

    def watched(self: ResBlock, emb: Tensor, context: Tensor) -> Tensor:
        found.append(self)
        return prepare(self, emb, context)

    monkeypatch.setattr(ResBlock, "prepare", watched)
    return found


def prepared(store: Path, architecture: Architecture = tiny.TINY) -> tiny.Engine:
    engine = tiny.engine(store, architecture)
    engine.prepare()
    return engine


@pytest.mark.parametrize("architecture", [tiny.TINY, tiny.WITH_Y], ids=["without y", "with y"])
def test_one_unit_computes_the_embedding_and_what_blocks_take_of_it(
    tmp_path: Path, counted: Counter[str], projected: list[object], architecture: Architecture
):
    engine = prepared(tmp_path, architecture)
    for seed in range(2):
        given = tiny.inputs(architecture, seed=seed)
        out = tiny.served(engine, given)
        assert projected == []
        assert counted["Embedding"] == seed + 1
        assert tiny.error(out, tiny.clean(engine, *given).double()) < 1e-6
        projected.clear()


def test_whole_timesteps_and_half_precision_give_what_the_clean_unet_gives(tmp_path: Path):
    network = tiny.donor(dtype=torch.bfloat16)
    engine = tiny.engine(tmp_path, unet=network)
    engine.prepare()
    x, timesteps, context, _ = tiny.inputs()
    given = (x.bfloat16(), timesteps.long(), context.bfloat16(), None)
    out = tiny.served(engine, given)
    assert out.dtype == torch.bfloat16
    assert tiny.error(out, tiny.clean(engine, *given).double()) < 0.01


def test_a_weight_that_changes_in_place_is_seen(tmp_path: Path):
    engine, given = prepared(tmp_path), tiny.inputs()
    before = tiny.served(engine, given)
    for name in ("time_embed.0.weight", f"{BLOCKS[1]}.emb_layers.1.weight"):
        engine.network.get_parameter(name).data.mul_(2)
        after = tiny.served(engine, given)
        assert tiny.error(after, before.double()) > 1e-3
        assert tiny.error(after, tiny.clean(engine, *given).double()) < 1e-6
        before = after


def test_a_layer_of_somebody_else_is_given_the_embedding_itself(
    tmp_path: Path, counted: Counter[str], projected: list[object]
):
    """It may even write into it, and the layers behind it see that, as they do without us."""
    engine, given = prepared(tmp_path), tiny.inputs()
    own = engine.clean.layers[BLOCKS[0]]

    def theirs(h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        out = own(h, emb, context)
        emb.mul_(0.5)
        return out

    out = engine.compute(*given, {BLOCKS[0]: theirs})
    assert counted["Embedding"] == 0
    assert len(projected) == len(BLOCKS)
    assert tiny.error(out, tiny.clean(engine, *given).double()) > 1e-3
    layers = {**engine.clean.layers, BLOCKS[0]: theirs}
    assert tiny.error(out, tiny.clean(engine, *given, layers).double()) < 1e-6


def test_one_timestep_for_a_whole_batch_is_computed_without_units(
    tmp_path: Path, counted: Counter[str]
):
    engine, (x, timesteps, context, _) = prepared(tmp_path), tiny.inputs()
    given = (x, timesteps[:1], context, None)
    assert torch.equal(engine.compute(*given), tiny.clean(engine, *given))
    assert counted["ResBlock"] == 0


@pytest.mark.parametrize("width", [None, 5], ids=["without y", "with another y"])
def test_a_wrong_y_fails_as_it_does_in_the_clean_unet(tmp_path: Path, width: int | None):
    engine = prepared(tmp_path, tiny.WITH_Y)
    x, timesteps, context, _ = tiny.inputs(tiny.WITH_Y)
    y = None if width is None else torch.randn(2, width)
    for compute in (engine.compute, engine.clean.forward):
        with pytest.raises((ValueError, RuntimeError), match=r"needs y|shapes cannot be mult"):
            compute(x, timesteps, context, y)
    tiny.served(engine, tiny.inputs(tiny.WITH_Y))  # the code is not at fault
