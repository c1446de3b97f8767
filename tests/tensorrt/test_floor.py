"""The floor of the paper model: shapes and operations of the list that TensorRT is given."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lib_accel.compile.backends.tensorrt.network import unet_network
from lib_accel.model.unet import UNet
from lib_accel.tools.laboratory.floor import launches

from ..tiny import TINY, WITH_Y


@pytest.mark.parametrize("architecture", [TINY, WITH_Y], ids=["plain", "with y"])
def test_the_operations_are_those_that_torch_counts(architecture):
    network = unet_network(architecture)
    sizes = {"B": 2, "H": 16, "W": 24, "L": 77}
    shapes = {
        name: tuple(sizes.get(n, n) for n in shape) for name, shape in network.activations.items()
    }
    found = launches(network, shapes, item=2)
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        given = {name: torch.empty(shape) for name, shape in shapes.items()}
        UNet(architecture)(given["x"], given["timesteps"], given["context"], given.get("y"))
    assert sum(launch.flops for launch in found) == counted.get_total_flops()


def test_each_weight_of_a_product_is_read_once():
    network = unet_network(TINY)
    shapes = {"x": (1, 4, 8, 8), "timesteps": (1,), "context": (1, 1, TINY.context_dim)}
    traffic = sum(launch.bytes for launch in launches(network, shapes, item=2))
    assert traffic > 2 * sum(prod(s) for s in network.weights.values() if len(s) > 1)
