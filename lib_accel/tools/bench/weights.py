"""Copies of the UNet's weights, one for each group of rows of the ladder.

Compiled code rewrites the memory layout of convolution weights on a GPU. So rows of different
groups must never share weights: the baseline would be timed with the layout of another row.
"""

from __future__ import annotations

from collections.abc import Mapping

import psutil
import torch
from torch import Tensor, nn

from ...model.architecture import Architecture
from ...model.unet import UNet

RESERVE = 4 * 2**30
"""Memory left for activations, the pools of CUDA graphs and libraries, in bytes."""


class WeightCopy:
    """One copy of the weights in device memory, for the rows of one group.

    `unload` frees the memory and `load` fills it again. Both keep the Parameter objects, and `load`
    keeps the memory layout, so that code which is bound to them can go on. `values` are the
    weights by name, on the CPU.
    """

    def __init__(
        self, architecture: Architecture, values: Mapping[str, Tensor], device: torch.device
    ):
        self._values, self._device = values, device
        self._strides = {name: value.stride() for name, value in values.items()}
        self.parameters: dict[str, nn.Parameter] = {
            name: nn.Parameter(self._filled(name), requires_grad=False) for name in values
        }
        self.unet = UNet(architecture).adopt(self.parameters)
        self._loaded = True

    def _filled(self, name: str) -> Tensor:
        value = self._values[name]
        empty = torch.empty_strided(
            value.shape, self._strides[name], dtype=value.dtype, device=self._device
        )
        return empty.copy_(value)

    def load(self) -> None:
        """Fill device memory with the weights, unless they are there."""
        if not self._loaded:
            for name, parameter in self.parameters.items():
                parameter.data = self._filled(name)
        self._loaded = True

    def unload(self) -> None:
        """Free the device memory of the weights."""
        if not self._loaded:
            return
        for name, parameter in self.parameters.items():
            self._strides[name] = parameter.stride()
            parameter.data = parameter.data.new_empty(0)
        self._loaded = False
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def copies_that_fit(bytes_each: int, device: torch.device) -> int:
    """Return how many more copies of the weights the device's free memory holds."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    return max(0, (free - RESERVE) // bytes_each)
