"""The units of the backend `kernels`: what they compute, and what they launch and copy.

The operations between are torch's here; tests of the kernels themselves are beside this file.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lib_accel.compile.accuracy import example_inputs
from lib_accel.compile.backends.kernels.units import unit_fn
from lib_accel.compile.units import (
    UnitFn,
    UnitModule,
    image_widths,
    unit_key,
    units_among,
    units_of,
    upsamplings_among,
)
from lib_accel.model.architecture import Architecture
from lib_accel.model.specs import (
    ResBlock,
    SpatialTransformer,
    Spec,
    Upsample,
    VaeAttention,
    VaeBlock,
    VaeOutput,
)
from lib_accel.model.vae.network import DECODER, ENCODER, Half, Network
from lib_accel.runtime.bound import binding
from lib_accel.runtime.bound.binding import CompiledLayer
from lib_accel.runtime.bound.compiled_unet import CompiledUNet

from .. import tiny
from ..threads import one_thread  # noqa: F401  (a fixture)
from .reference import TorchKernels

CPU, GPU = torch.device("cpu"), torch.device("cuda")
KINDS = {
    unit_key(unit): unit
    for unit in (
        *units_of(tiny.WITH_Y),
        ResBlock(96, 64, 32),
        ResBlock(96, 64, 32, skip_channels=32),
        ResBlock(64, 64, 32, skip_channels=32),
        SpatialTransformer(64, 24, 2, 3, linear=True),
        Upsample(64, 32),
        VaeBlock(64, 64),
        VaeBlock(64, 128),
        VaeAttention(64),
        VaeOutput(64, 3),
    )
}


def unit_of(unit: Spec) -> UnitFn:
    return unit_fn(unit, TorchKernels())  # type: ignore[arg-type]


def apart(inputs: list[Tensor], unit: Spec) -> list[Tensor]:
    """Give a unit the images that it takes on a GPU."""
    if not isinstance(unit, ResBlock):
        return inputs
    h, *rest = inputs
    parts = h.split(image_widths(unit, GPU), dim=1)
    return [*(part.contiguous(memory_format=torch.channels_last) for part in parts), *rest]


@pytest.mark.parametrize("architecture", tiny.FAMILIES.values(), ids=tiny.FAMILIES)
def test_a_unet_of_these_units_is_the_clean_unet(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(binding, "image_widths", lambda unit, _: image_widths(unit, GPU))
    unet = tiny.donor(architecture, dtype=torch.float64)
    x, timesteps, context, y = tiny.inputs(architecture, height=9, width=8, length=5)
    given = x.double(), timesteps, context.double(), None if y is None else y.double()
    specs = [*units_of(architecture), *upsamplings_among(s for _, s in architecture.layers())]
    units = {unit: unit_of(unit) for unit in specs}
    layers = {
        name: CompiledLayer(units[spec], unet.get_submodule(name), spec, torch.float64)
        for name, spec in architecture.layers()
        if spec in units
    }
    compiled = CompiledUNet(unet)
    compiled.bind(layers, units, torch.float64)
    with torch.no_grad():
        expected, kept = unet(*given), compiled.keys_and_values(given[2])
        assert tiny.error(compiled(*given, kept), expected) < 1e-6, "sinusoids are float32"
        layers = {**unet.layers, **layers}  # each prepares its own inputs, as for ControlNet
        assert tiny.error(unet(*given, layers), expected) < 1e-12


@pytest.mark.parametrize("kind", [DECODER, ENCODER])
@torch.no_grad()
def test_half_a_vae_of_these_units_is_the_clean_one(kind: str):
    half = Half.preset(kind, 32)
    network = Network(half).adopt(
        {name: nn.Parameter(torch.randn(s).double() / 9) for name, s in half.shapes().items()}
    )
    specs = dict(half.layers)
    units = {unit: unit_of(unit) for unit in units_among(specs.values())}
    units |= {unit: unit_of(unit) for unit in upsamplings_among(specs.values())}
    layers = {
        name: CompiledLayer(units[spec], network.layers[name], spec, torch.float64)  # type: ignore
        for name, spec in specs.items()
        if spec in units
    }
    x = torch.randn(2, 4 if kind == DECODER else 3, 9, 16).double()
    assert tiny.error(network.run(x, {**network.layers, **layers}), network.run(x)) < 1e-12
    if kind == DECODER:
        assert len(layers) == len(specs) - 1, "all but the first convolution"


@pytest.mark.parametrize("unit", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("size", [(2, 6, 5, 3), (1, 1, 1, 1), (3, 1, 4, 77)], ids=str)
def test_a_unit_computes_its_layer(unit: Spec, size: tuple[int, int, int, int]):
    module = UnitModule(unit)
    activations, weights = example_inputs(unit, size, torch.float64, CPU)
    with torch.no_grad():
        expected = module(activations, weights)
    before = [t.clone() for t in (*activations, *weights)]
    inputs = [*apart(activations, unit), *weights]
    out = unit_of(unit)(inputs)
    assert tiny.error(out, expected) < 1e-12
    assert out.ndim == 1 or out.is_contiguous(memory_format=torch.channels_last)
    assert all(map(torch.equal, (*activations, *weights), before)), "nothing it was given changes"
