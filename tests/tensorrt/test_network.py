"""The list of operations that TensorRT is given computes what the clean UNet computes."""

from __future__ import annotations

import pytest
import torch

from lib_accel.compile.accuracy import example_inputs
from lib_accel.compile.backends.tensorrt.network import KINDS, unet_network, unit_network
from lib_accel.compile.units import UnitModule, describe, image_widths, units_of
from lib_accel.model import specs
from lib_accel.model.random_weights import random_weights
from lib_accel.model.unet import UNet

from .. import tiny
from .operations import compute

EVERY = units_of(tiny.FAMILIES["SDXL"]) + units_of(tiny.FAMILIES["SD1"])
LAYERS = [unit for unit in EVERY if not isinstance(unit, specs.Embedding)]
SIZES = [(2, 8, 8, 77), (1, 13, 9, 1), (3, 1, 1, 5)]
"""(B, H, W, L), H and W in latents: plain, odd at every level, and the smallest."""


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_whole_unet_as_operations_computes_the_same(family: str, size: tuple[int, int, int, int]):
    a = tiny.FAMILIES[family]
    weights = random_weights(a, torch.float64, seed=1)
    batch, height, width, length = size
    x = torch.randn(batch, a.in_channels, height, width, dtype=torch.float64)
    timesteps = torch.linspace(1, 999, batch, dtype=torch.float64)
    context = torch.randn(batch, length, a.context_dim, dtype=torch.float64)
    y = torch.randn(batch, a.adm_channels, dtype=torch.float64) if a.adm_channels else None
    expected = UNet(a).adopt(weights)(x, timesteps, context, y)

    given = {"x": x, "timesteps": timesteps, "context": context, **weights}
    found = compute(unet_network(a), given if y is None else {**given, "y": y})
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("unit", LAYERS, ids=describe)
def test_a_unit_as_operations_computes_the_same(unit: specs.Spec):
    dtype, device = torch.float64, torch.device("cpu")
    given, weights = example_inputs(unit, (2, 9, 7, 5), dtype, device)
    module = UnitModule(unit)
    network = unit_network(unit)
    widths = image_widths(unit, torch.device("cuda"))  # apart on a GPU
    activations = [*given[0].split(widths, dim=1), *given[1:]]
    names = [*network.activations, *network.weights]
    found = compute(network, dict(zip(names, [*activations, *weights], strict=True)))
    assert list(network.weights) == module.names
    torch.testing.assert_close(found, module(given, weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_weight_is_used_and_each_operation_is_needed(family: str):
    network = unet_network(tiny.FAMILIES[family])
    used = {name for operation in network.operations for name in operation.inputs}
    made = {operation.output for operation in network.operations}
    assert used | {network.output} == made | set(network.weights) | set(network.activations)
    assert {operation.kind for operation in network.operations} == set(KINDS)


def test_the_time_embedding_is_activated_once():
    operations = unet_network(tiny.FAMILIES["SD1"]).operations
    inputs = [operation.inputs for operation in operations if operation.kind == "silu"]
    assert len(inputs) == len(set(inputs))
