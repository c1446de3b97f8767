"""The keys and values of prompts, which are kept from step to step."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib_accel.model.layers import Attention
from lib_accel.model.parts.modules import set_parameter
from lib_accel.runtime.bound import compiled_unet
from lib_accel.runtime.lora.merging import LowRank, merge

from . import tiny
from .test_prepared import counted, prepared  # noqa: F401  (a fixture)
from .threads import one_thread  # noqa: F401  (a fixture)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The cross-attentions whose keys and values were computed, one entry each time."""
    found: list[object] = []
    compute = Attention.keys_and_values

    def watched(self: Attention, context: Tensor) -> list[Tensor]:
        if context.shape[-1] == tiny.CONTEXT:
            found.append(self)
        return compute(self, context)

    monkeypatch.setattr(Attention, "keys_and_values", watched)
    return found


def check(engine: tiny.Engine, given: tiny.Inputs, products: list[object], new: bool) -> None:
    """Compute a step, which has to be right; `new`: whether its prompt has to be projected."""
    products.clear()
    out = tiny.served(engine, given)
    assert bool(products) == new
    assert tiny.error(out, tiny.clean(engine, *given).double()) < 1e-6


def test_a_prompt_is_projected_once_for_all_steps(tmp_path: Path, products: list[object]):
    """As the WebUI does, each step brings a new tensor of it, another image and timestep."""
    engine = prepared(tmp_path)
    x, timesteps, context, _ = tiny.inputs()
    for step in range(4):
        given = (x * (1 + step), timesteps - step, context.clone(), None)
        check(engine, given, products, new=step == 0)
    assert 0 < engine.compiled.prompts.bytes < tiny.MIB


def test_a_prompt_that_changes_at_the_same_address_is_seen(tmp_path: Path, products: list[object]):
    engine, given = prepared(tmp_path), tiny.inputs()
    check(engine, given, products, new=True)
    check(engine, given, products, new=False)
    given[2][1, -1, -1] += 1e-3  # one number of it
    check(engine, given, products, new=True)
    given[2][:] = tiny.inputs(seed=7)[2]
    check(engine, given, products, new=True)
    check(engine, given, products, new=False)


def test_an_edited_prompt_comes_back_to_what_was_kept(tmp_path: Path, products: list[object]):
    """As in `[a:b:0.5]`, and where prompt and negative prompt are computed apart."""
    engine = prepared(tmp_path)
    a, b = (tiny.inputs(seed=seed) for seed in (1, 2))
    for step in range(6):
        check(engine, a if step % 2 else b, products, new=step < 2)


def test_other_lengths_and_batches_are_other_prompts(tmp_path: Path, products: list[object]):
    engine = prepared(tmp_path)
    sizes = [{"length": 77}, {"length": 154}, {"batch": 1}, {"batch": 3, "length": 1}]
    for new in (True, False):
        for size in sizes:
            check(engine, tiny.inputs(**size), products, new)


def test_one_prompt_for_a_whole_batch_is_computed_as_the_clean_unet_does(tmp_path: Path):
    engine, (x, timesteps, context, _) = prepared(tmp_path), tiny.inputs()
    given = (x, timesteps, context[:1].expand(2, -1, -1), None)
    assert tiny.error(engine.compute(*given), tiny.clean(engine, *given).double()) < 1e-6
    for compute in (engine.compute, tiny.clean):
        with pytest.raises(RuntimeError):
            compute(*([engine] if compute is tiny.clean else []), x, timesteps, context[:, :, :5])


TO_K = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
A_LORA = LowRank(torch.ones(64, 1), torch.ones(1, tiny.CONTEXT))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: merge(p.detach(), p.detach().clone(), [A_LORA]),
        lambda p: p.copy_(p * 2),  # as `load_state_dict` does
        lambda p: setattr(p, "data", p.data * 2),
        lambda p: p.data.mul_(2),  # as moving averages are copied; torch does not count it
    ],
    ids=["a LoRA", "in place", "another place", "uncounted"],
)
def test_another_weight_is_followed(
    tmp_path: Path, products: list[object], change: Callable[[nn.Parameter], object]
):
    engine, given = prepared(tmp_path), tiny.inputs()
    for _ in range(2):
        check(engine, given, products, new=True)
        check(engine, given, products, new=False)
        with torch.no_grad():
            change(engine.network.get_parameter(TO_K))


def test_the_weights_of_other_layers_do_not_matter(tmp_path: Path, products: list[object]):
    engine, given = prepared(tmp_path), tiny.inputs()
    check(engine, given, products, new=True)
    with torch.no_grad():
        engine.network.get_parameter(TO_K.replace("to_k", "to_q")).mul_(2)
    check(engine, given, products, new=False)


def test_memory_is_bounded_and_given_up(
    tmp_path: Path, products: list[object], monkeypatch: pytest.MonkeyPatch
):
    engine = prepared(tmp_path)
    prompts = engine.compiled.prompts
    for seed in range(6):
        check(engine, tiny.inputs(seed=seed), products, new=True)
    each = prompts.bytes // compiled_unet.MOST_PROMPTS
    monkeypatch.setattr(compiled_unet, "MOST_BYTES", 2 * each)
    check(engine, tiny.inputs(seed=7), products, new=True)
    assert prompts.bytes == 2 * each
    assert engine.memory.give_up(), "what is asked for where memory is short"
    assert prompts.bytes == 0
    assert not engine.memory.give_up()
    monkeypatch.setattr(compiled_unet, "has_room", lambda device, needed: False)
    for _ in range(2):
        check(engine, tiny.inputs(), products, new=True)
    assert prompts.bytes == 0
    engine.close()


def test_prompts_that_are_always_new_are_compared_no_more_for_a_while(
    tmp_path: Path, products: list[object]
):
    engine = prepared(tmp_path)
    for seed in range(compiled_unet.MISSES):
        check(engine, tiny.inputs(seed=seed), products, new=True)
    given = tiny.inputs()
    for _ in range(compiled_unet.PAUSE):
        assert engine.compiled.keys_and_values(given[2]) is None
    assert engine.compiled.prompts.bytes == 0
    check(engine, given, products, new=True)
    check(engine, given, products, new=False)


def test_no_weight_is_held_after_the_end(tmp_path: Path):
    engine, given = prepared(tmp_path), tiny.inputs()
    tiny.served(engine, given)
    weights = [weakref.ref(p) for p in engine.network.parameters()]
    engine.close()
    for name, p in list(engine.network.named_parameters()):
        set_parameter(engine.network, name, nn.Parameter(p.detach().clone()))
    del p
    gc.collect()
    assert not any(ref() is not None for ref in weights)


def test_each_step_compares_with_one_prompt_where_two_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a GPU each comparison waits for the device."""
    engine = prepared(tmp_path)
    a, b = (tiny.inputs(seed=seed)[2] for seed in (1, 2))
    compared, equal = [], torch.equal
    monkeypatch.setattr(torch, "equal", lambda *given: [compared.append(0), equal(*given)][1])
    for context in (a, b, a, b, a, b, b, b, b):
        compared.clear()
        assert engine.compiled.keys_and_values(context) is not None
    assert len(compared) == 1, "the same again"
    for context in (a, b, a, b):
        compared.clear()
        engine.compiled.keys_and_values(context)
    assert len(compared) == 1, "in turn"
