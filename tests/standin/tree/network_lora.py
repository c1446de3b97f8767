"""A plain LoRA: two factors, and for a convolution perhaps one in between."""

from __future__ import annotations

from typing import Any

import network
import torch
from torch import Tensor, nn


class ModuleTypeLora:
    def create_module(
        self, net: network.Network, weights: network.NetworkWeights
    ) -> NetworkModuleLora | None:
        return (
            NetworkModuleLora(net, weights)
            if {"lora_up.weight", "lora_down.weight"} <= weights.w.keys()
            else None
        )


class NetworkModuleLora(network.NetworkModule):
    def __init__(self, net: network.Network, weights: network.NetworkWeights):
        super().__init__(net, weights)
        w, layer = weights.w, weights.sd_module
        self.up_model = _holder(layer, w["lora_up.weight"], spatial=False)
        self.down_model = _holder(layer, w["lora_down.weight"], spatial=True)
        mid = w.get("lora_mid.weight")
        self.mid_model = None if mid is None else _holder(layer, mid, spatial=True)
        self.dim = w["lora_down.weight"].shape[0]

    def calc_updown(self, orig_weight: Tensor) -> tuple[Tensor, Tensor | None]:
        up, down = self.up_model.weight, self.down_model.weight
        shape = [up.shape[0], down.shape[1]]
        flat = up.reshape(up.shape[0], -1), down.reshape(down.shape[0], -1)
        if self.mid_model is not None:
            mid = self.mid_model.weight
            updown = torch.einsum("n m k l, i n, m j -> i j k l", mid, *flat)
            return self.finalize_updown(updown, orig_weight, shape + list(mid.shape[2:]))
        rank = self.network.dyn_dim
        updown = (flat[0][:, :rank] @ flat[1][:rank]).reshape(shape + list(down.shape[2:]))
        return self.finalize_updown(updown, orig_weight, shape + list(down.shape[2:]))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.up_model(self.down_model(x)) * self.multiplier() * self.calc_scale()


def _holder(layer: Any, weight: Tensor, spatial: bool) -> nn.Linear | nn.Conv2d:
    """Return a layer without bias of that weight. Raises where the network's layer has no such."""
    if type(layer) is nn.Linear:
        weight = weight.reshape(weight.shape[0], -1)
        module: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    elif type(layer) is nn.Conv2d:
        if spatial and weight.ndim == 2:
            weight = weight.reshape(weight.shape[0], -1, 1, 1)
        wide = spatial and weight.shape[2:] != (1, 1)
        kernel, padding = (layer.kernel_size, layer.padding) if wide else ((1, 1), 0)
        module = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, padding=padding, bias=False)
    else:
        raise AssertionError(f"a LoRA of a {type(layer).__name__}")
    with torch.no_grad():
        module.weight.copy_(weight.reshape(module.weight.shape))
    return module.requires_grad_(False)
