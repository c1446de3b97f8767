"""OFT and BOFT: networks that rotate the output channels of a weight in blocks."""

from __future__ import annotations

from typing import Any

import network
import torch
from torch import Tensor, nn


class ModuleTypeOFT:
    def create_module(self, net: Any, weights: Any) -> NetworkModuleOFT | None:
        known = {"oft_blocks", "oft_diag"} & weights.w.keys()
        return NetworkModuleOFT(net, weights) if known else None


class NetworkModuleOFT(network.NetworkModule):
    blocks: int  # how many there are
    size: int  # of each

    def __init__(self, net: network.Network, weights: network.NetworkWeights):
        super().__init__(net, weights)
        layer: Any = self.sd_module
        w, outputs = weights.w, layer.weight.shape[0]
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise AttributeError(f"an OFT of a {type(layer).__name__}")
        self.scale = 1.0
        self.is_r = "oft_blocks" not in w
        self.oft_blocks: Tensor = w["oft_diag" if self.is_r else "oft_blocks"]
        self.limit = None if self.is_r or "alpha" not in w else w["alpha"] * outputs
        self.is_boft, self.dim = self.oft_blocks.ndim == 4, self.oft_blocks.shape[int(self.is_r)]
        rescale = w.get("rescale")
        self.rescale = None
        if rescale is not None:
            self.rescale = rescale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        if self.is_r:
            self.blocks, self.size = outputs // self.dim, self.dim
        else:
            self.blocks, self.size = self.dim, outputs // self.dim
            if self.is_boft:
                self.blocks, self.size = self.oft_blocks.shape[1:3]

    def calc_updown(self, orig_weight: Tensor) -> tuple[Tensor, Tensor | None]:
        rotations, eye = self.oft_blocks, torch.eye(self.size)
        if not self.is_r:
            skew = rotations - rotations.transpose(-1, -2)
            if self.limit is not None and self.limit != 0:
                norm = torch.norm(skew.flatten())
                skew = skew * ((torch.clamp(norm, max=self.limit) + 1e-8) / (norm + 1e-8))
            rotations = torch.matmul(eye + skew, (eye - skew).float().inverse())
        if self.is_boft and self.is_r:
            raise AttributeError("boft_m")
        if self.is_boft:
            merged = self._butterfly(rotations, orig_weight)
        else:
            split = orig_weight.reshape(self.blocks, self.size, *orig_weight.shape[1:])
            merged = torch.einsum("k n m, k n ... -> k m ...", rotations, split).flatten(0, 1)
        if self.rescale is not None:
            merged = self.rescale * merged
        return self.finalize_updown(merged - orig_weight, orig_weight, orig_weight.shape)

    def _butterfly(self, rotations: Tensor, weight: Tensor) -> Tensor:
        for i, step in enumerate(rotations):
            k, rest = 2**i * (self.size // 2), weight.shape[1:]
            weight = weight.reshape(-1, 2, k, *rest).transpose(1, 2).reshape(-1, self.size, *rest)
            weight = torch.einsum("b i j, b j ... -> b i ...", step, weight)
            weight = weight.reshape(-1, k, 2, *rest).transpose(1, 2).reshape(-1, *rest)
        return weight
