"""A plain LoRA: two factors."""

from __future__ import annotations

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
        self.up_model, self.down_model = (
            _holder(weights.w[f"lora_{which}.weight"]) for which in ("up", "down")
        )
        self.mid_model = None
        self.dim = weights.w["lora_down.weight"].shape[0]

    def calc_updown(self, orig_weight: Tensor) -> tuple[Tensor, Tensor | None]:
        up, down = self.up_model.weight, self.down_model.weight
        rank = self.network.dyn_dim
        updown = up.flatten(1)[:, :rank] @ down.flatten(1)[:rank]
        return self.finalize_updown(updown, orig_weight, [up.shape[0], *down.shape[1:]])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.up_model(self.down_model(x)) * self.multiplier() * self.calc_scale()


def _holder(weight: Tensor) -> nn.Linear | nn.Conv2d:
    outputs, inputs, *kernel = weight.shape
    module = (
        nn.Conv2d(inputs, outputs, tuple(kernel), padding=kernel[0] // 2, bias=False)
        if kernel
        else nn.Linear(inputs, outputs, bias=False)
    )
    with torch.no_grad():
        module.weight.copy_(weight)
    return module.requires_grad_(False)
