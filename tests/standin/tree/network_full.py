"""A whole difference to the weight and, where the file has one, to the bias."""

from __future__ import annotations

import network
from torch import Tensor


class ModuleTypeFull:
    def create_module(
        self, net: network.Network, weights: network.NetworkWeights
    ) -> NetworkModuleFull | None:
        return NetworkModuleFull(net, weights) if "diff" in weights.w else None


class NetworkModuleFull(network.NetworkModule):
    def __init__(self, net: network.Network, weights: network.NetworkWeights):
        super().__init__(net, weights)
        self.weight, self.ex_bias = weights.w["diff"], weights.w.get("diff_b")

    def calc_updown(self, orig_weight: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.finalize_updown(self.weight, orig_weight, self.weight.shape, self.ex_bias)
