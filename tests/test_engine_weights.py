"""The engine follows what the host does to its weights, without copies or compiling, or refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lib_accel.errors import BadWeights
from lib_accel.model import precision
from lib_accel.runtime.lora.files import Merger, random_deltas

from . import tiny
from .threads import one_thread  # noqa: F401  (a fixture)
from .tiny import TINY, Engine, addresses, ready, served


def test_binding_copies_nothing(tiny_store: Path):
    donor = tiny.donor()
    before, objects = addresses(donor), list(donor.parameters())
    engine = ready(tiny_store, unet=donor)
    served(engine, tiny.inputs())
    assert addresses(donor) == addresses(engine.clean) == before
    assert all(a is b for a, b in zip(objects, engine.clean.parameters(), strict=True))


def test_another_checkpoint_compiles_nothing(tiny_store: Path):
    engine = ready(tiny_store, unet=tiny.donor(seed=7))
    tiny.check(engine, tiny.inputs())
    assert (engine.counters.compiles, engine.counters.accelerated_calls) == (0, 1)
    assert not torch.allclose(
        engine.compute(*tiny.inputs()), ready(tiny_store).compute(*tiny.inputs()), atol=1e-2
    )


def test_a_lora_is_seen_by_the_next_call_and_taken_out_exactly(tiny_store: Path):
    engine, given = ready(tiny_store), tiny.inputs()
    merger = Merger(dict(engine.network.named_parameters()))
    plain, binds = served(engine, given), engine.counters.binds
    first, second = (random_deltas(TINY, rank=4, seed=seed) for seed in (1, 2))
    seen = [plain]
    for loras in ([(first, 1.0)], [(first, 0.5)], [(first, 0.5), (second, -0.7)]):
        merger.set(loras)
        tiny.check(engine, given)
        seen.append(served(engine, given))
    assert min(tiny.error(a, b.double()) for a in seen for b in seen if a is not b) > 1e-3
    merger.set([])
    assert torch.equal(served(engine, given), plain)
    assert (engine.counters.compiles, engine.counters.binds) == (0, binds)


def layer_of(engine: Engine) -> Any:
    return engine.network.get_submodule("middle_block.1.transformer_blocks.0.attn1")


MOVES: dict[str, Callable[[Engine], Any]] = {
    "another Parameter": lambda e: setattr(
        layer_of(e).to_q, "weight", nn.Parameter(layer_of(e).to_q.weight.data * 2)
    ),
    "another address": lambda e: setattr(
        layer_of(e).to_q.weight, "data", layer_of(e).to_q.weight.data * 2
    ),
    "channels last": lambda e: e.network.to(memory_format=torch.channels_last),
    "transposed memory": lambda e: [
        setattr(p, "data", p.data.t().contiguous().t())
        for p in e.network.parameters()
        if p.ndim == 2
    ],
    "there and back": lambda e: e.network.double().float(),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_moved_weights_are_taken_up(tiny_store: Path, move: Callable[[Engine], Any]):
    engine, given = ready(tiny_store), tiny.inputs()
    served(engine, given)
    binds = engine.counters.binds
    move(engine)
    tiny.check(engine, given)
    served(engine, given)
    assert (engine.counters.compiles, engine.counters.binds) == (0, binds + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_code_never_meets_weights_of_another_dtype(
    tiny_store: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Without code for a dtype the clean UNet computes; the old dtype brings the code back."""
    monkeypatch.setattr(
        precision, "fastest_cpu_dtype", lambda weights: weights
    )  # a CPU that is fast at bfloat16
    engine, given = ready(tiny_store), tiny.inputs()
    engine.network.to(dtype)
    assert torch.equal(engine.compute(*given), tiny.clean(engine, *given))
    status = engine.status
    assert (status.state, engine.counters.accelerated_calls, status.dtype) == (
        "eager",
        0,
        str(dtype).removeprefix("torch."),
    )
    assert "compiling is switched off" in str(status.reason)
    engine.network.float()
    tiny.check(engine, given)
    assert (engine.status.state, engine.counters.accelerated_calls) == ("ready", 1)


def test_code_serves_narrow_weights_that_are_widened(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        precision, "fastest_cpu_dtype", lambda weights: torch.float32
    )  # a CPU that is slow at bfloat16
    engine, given = ready(tiny_store), tiny.inputs()
    engine.network.bfloat16()
    at = addresses(engine.network)
    tiny.check(engine, given)
    served(engine, given)
    assert (engine.status.state, engine.status.dtype, engine.counters.compiles) == (
        "ready",
        "float32",
        0,
    )
    assert addresses(engine.network) == at
    assert {p.dtype for p in engine.network.parameters()} == {torch.bfloat16}


def test_unusable_weights_are_refused_until_they_are_back(tiny_store: Path):
    engine, given = ready(tiny_store), tiny.inputs()
    expected = served(engine, given)
    layer = engine.network.get_submodule("out.2")
    before = {name: p.data for name, p in engine.network.named_parameters()}
    layer.bfloat16()
    with pytest.raises(
        BadWeights, match=r"out\.2\.weight is torch\.bfloat16 .* expected one dtype"
    ):
        engine.compute(*given)
    layer.float()
    layer.weight.data = layer.weight.data[:2]  # type: ignore[union-attr, index, assignment]
    with pytest.raises(
        BadWeights,
        match=r"out\.2\.weight: got the shape \[2, 64, 3, 3\], expected the shape \[4, 64, 3, 3\]",
    ):
        engine.compute(*given)
    layer.weight.data = before["out.2.weight"]
    served(engine, given)
    engine.network.to("meta")
    with pytest.raises(BadWeights, match="meta device"):
        engine.compute(*given)
    engine.network.load_state_dict(before, assign=True)
    assert torch.equal(served(engine, given), expected)


def test_a_bias_that_appears_is_computed(tiny_store: Path):
    """Some networks of the Lora extension add a bias that compiled code has no input for."""
    donor = tiny.donor()
    attention = donor.get_submodule("middle_block.1.transformer_blocks.0.attn1")
    weight = attention.to_q.weight
    attention.to_q = nn.Linear(64, 64, bias=False, device="meta")  # as the host's layers are
    attention.to_q.weight = weight
    engine = ready(tiny_store, unet=donor)
    before = served(engine, tiny.inputs())
    attention.to_q.bias = nn.Parameter(torch.ones(64))
    after = served(engine, tiny.inputs())
    assert tiny.error(after, donor(*tiny.inputs()).double()) < 1e-5
    assert tiny.error(after, before.double()) > 1e-4
    others = ready(tiny_store).compiled_layers().keys()
    assert others - engine.compiled_layers().keys() == {"middle_block.1"}
    attention.to_q.bias = None
    assert torch.equal(served(engine, tiny.inputs()), before)
    attention.to_q.bias = nn.Parameter(torch.ones(63))
    for _ in range(2):  # as long as it is there
        with pytest.raises(
            BadWeights, match=r"middle_block.*to_q\.bias: this UNet has no such parameter"
        ):
            engine.compute(*tiny.inputs())
    attention.to_q.bias = None
    assert torch.equal(served(engine, tiny.inputs()), before)
