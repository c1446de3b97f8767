"""Units: which there are, their keys, and the function of activations and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lib_accel.compile.accuracy import example_inputs
from lib_accel.compile.units import (
    UnitModule,
    activation_shapes,
    trace_size,
    unit_key,
    units_of,
    widest,
)
from lib_accel.model.architecture import Architecture
from lib_accel.model.parts.embedding import timestep_frequencies
from lib_accel.model.presets import sd1, sdxl
from lib_accel.model.specs import ResBlock, Spec

from .. import tiny
from ..threads import one_thread  # noqa: F401  (a fixture)

UNITS = units_of(tiny.TINY)
LAYERS = UNITS[1:]  # without the embedding
CPU = torch.device("cpu")


def test_the_tiny_unet_has_five_units_and_its_relatives_share_them():
    assert len(UNITS) == 5
    assert units_of(tiny.INPAINTING) == UNITS
    assert units_of(tiny.WITH_Y)[1:] == LAYERS
    assert len(set(units_of(tiny.RELATIVE)) & set(UNITS)) == 4


def test_the_keys_of_units_stay_the_same():
    """A changed key makes everybody compile again: say so in the changelog."""
    assert [unit_key(u) for u in UNITS] == [
        "Embedding-8002e44b5b8f",
        "ResBlock-e5da9606185f",
        "SpatialTransformer-92cb2dac2b49",
        "ResBlock-1c0ff9c285d6",
        "Output-19caffd62de8",
    ]


def test_different_units_have_different_keys():
    every = {*units_of(sd1()), *units_of(sdxl()), *UNITS}
    assert len({unit_key(u) for u in every}) == len(every)


@pytest.mark.parametrize("unit", UNITS, ids=unit_key)
def test_every_activation_changes_the_result(unit: Spec):
    """Where one does not, code that ignores it would pass every other test.

    With one channel in each group, for instance, normalising hides the time embedding.
    """
    module = UnitModule(unit)
    inputs, weights = example_inputs(unit, (2, 6, 5, 3), torch.float32, CPU)
    before = module(inputs, weights)
    for i in range(len(inputs)):
        other = [t + torch.randn_like(t) if i == k else t for k, t in enumerate(inputs)]
        assert tiny.error(module(other, weights), before.double()) > 0.01, i


@pytest.mark.parametrize("unit", LAYERS, ids=unit_key)
def test_a_unit_computes_every_layer_of_its_spec(unit: Spec):
    """Its weights are the layer's own but for those that prepare its inputs."""
    donor = tiny.donor()
    layers = [donor.get_submodule(name) for name, spec in tiny.TINY.layers() if spec == unit]
    module = UnitModule(unit)
    activations, _ = example_inputs(unit, (2, 6, 5, 3), torch.float32, CPU)
    emb = torch.randn(2, tiny.TINY.emb_channels)
    context = torch.randn(2, 3, tiny.CONTEXT)
    for layer in layers:
        own = dict(layer.named_parameters())
        prepared = layer.prepare(emb, context)
        assert [p.shape for p in prepared] == [a.shape for a in activations[1:]]
        out = module([activations[0], *prepared], [own.pop(name) for name in module.names])
        assert torch.equal(out, layer(activations[0], emb, context))
        apart = ("emb_layers", "attn2.to_k", "attn2.to_v")
        assert all(any(part in name for part in apart) for name in own)
    assert layers


@pytest.mark.parametrize("architecture", [tiny.TINY, tiny.WITH_Y], ids=["without y", "with y"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_embedding_is_what_the_unet_and_its_blocks_compute(
    architecture: Architecture, batch: int
):
    donor = tiny.donor(architecture)
    _, timesteps, context, y = tiny.inputs(architecture, batch)
    unit = architecture.embedding
    weights = [timestep_frequencies(unit.model_channels, CPU), *donor.embedding_weights()]
    flat = UnitModule(unit)([timesteps, *([] if y is None else [y])], weights)
    emb = donor.embed(timesteps, y)
    blocks = [donor.layers[n] for n, s in architecture.layers() if isinstance(s, ResBlock)]
    each = [emb, *(t for block in blocks for t in block.prepare(emb, context))]  # type: ignore[attr-defined]
    assert torch.equal(flat, torch.cat([t.flatten() for t in each]))


@pytest.mark.parametrize("unit", UNITS, ids=unit_key)
def test_example_inputs_have_the_layout_that_compiled_code_reads(unit: Spec):
    activations, weights = example_inputs(unit, (2, 6, 5, 3), torch.bfloat16, CPU)
    assert [a.shape for a in activations] == activation_shapes(unit, (2, 6, 5, 3), CPU)
    h = activations[0]
    assert h.ndim == 1 or h.is_contiguous(memory_format=torch.channels_last)
    assert [w.shape for w in weights] == UnitModule(unit).shapes()
    assert all(w.is_contiguous() for w in weights)
    wide = [t for t in (*activations, *weights) if t.dtype != torch.bfloat16]
    assert wide == ([activations[0], weights[0]] if unit == UNITS[0] else [])


@pytest.mark.parametrize("unit", LAYERS, ids=unit_key)
def test_no_activation_is_wider_than_widest(unit: Spec):
    # more values than any weight has, and than the scores of attention, which torch keeps there
    size = (16, 8, 6, 7)
    most = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes = [t.numel() for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
            most[0] = max(most[0], *sizes, 0)
            return out

    # on the meta device: the operators for CPUs compute a part of the rows at a time
    inputs = [
        [t.to("meta") for t in given] for given in example_inputs(unit, size, torch.float32, CPU)
    ]
    with torch.no_grad(), Watch():
        UnitModule(unit)(*inputs)
    assert most[0] == widest(unit) * 16 * 8 * 6


@pytest.mark.parametrize(
    "unit", sorted({*units_of(sd1()), *units_of(sdxl()), *UNITS}, key=unit_key)
)
def test_no_two_sizes_of_the_traced_example_are_equal(unit: Spec):
    """torch takes equal sizes for the same one, and would make code that serves no others."""
    sizes = trace_size(unit)
    fixed = {n for s in UnitModule(unit).shapes() for n in s}
    assert len({*sizes}) == 4
    assert not {1, *fixed} & {*sizes}
