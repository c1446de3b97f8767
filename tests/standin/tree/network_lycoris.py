"""Networks without two plain factors: IA3, LoHa, LoKr, GLoRA and norms."""

from __future__ import annotations

from typing import Any

import network
import torch
from torch import Tensor


class ModuleTypeIa3:
    def create_module(self, net: Any, weights: Any) -> NetworkModuleIa3 | None:
        return NetworkModuleIa3(net, weights) if "weight" in weights.w else None


class NetworkModuleIa3(network.NetworkModule):
    def __init__(self, net: network.Network, weights: network.NetworkWeights):
        super().__init__(net, weights)
        self.w, self.on_input = weights.w["weight"], weights.w["on_input"].item()

    def calc_updown(self, orig_weight: Tensor) -> tuple[Tensor, Tensor | None]:
        shape = [self.w.size(0), orig_weight.size(1)]
        if self.on_input:
            return self.finalize_updown(orig_weight * self.w, orig_weight, shape[::-1])
        return self.finalize_updown(orig_weight * self.w.reshape(-1, 1), orig_weight, shape)


class ModuleTypeHada:
    def create_module(self, net: Any, weights: Any) -> NetworkModuleHada | None:
        names = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
        return NetworkModuleHada(net, weights) if names <= weights.w.keys() else None


class NetworkModuleHada(network.NetworkModule):
    """LoHa: the product, element by element, of two products."""

    def __init__(self, net: network.Network, weights: network.NetworkWeights):
        super().__init__(net, weights)
        self.a1, self.b1, self.a2, self.b2 = (
            weights.w[f"hada_w{side}_{which}"] for side in (1, 2) for which in "ab"
        )
        self.t1, self.t2 = (weights.w.get(f"hada_t{side}") for side in (1, 2))
        self.dim = self.b1.shape[0]

    def calc_updown(self, orig_weight: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.t1 is not None:
            shape = [self.a1.size(1), self.b1.size(1), *self.t1.shape[2:]]
        else:
            kernel = self.b1.shape[2:] if self.b1.ndim == 4 else ()
            shape = [self.a1.size(0), self.b1.size(1), *kernel]
        one, two = (
            _product(a, b, shape) if t is None else _tucker(t, a, b)
            for a, b, t in ((self.a1, self.b1, self.t1), (self.a2, self.b2, self.t2))
        )
        return self.finalize_updown(one * two, orig_weight, shape)


def _product(a: Tensor, b: Tensor, shape: list[int]) -> Tensor:
    return (a.reshape(a.size(0), -1) @ b.reshape(b.size(0), -1)).reshape(shape)


def _tucker(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    inner = torch.einsum("i j k l, j r -> i r k l", t, b)
    return torch.einsum("i j k l, i r -> r j k l", inner, a)


class ModuleTypeLokr:
    def create_module(self, net: Any, weights: Any) -> NetworkModuleLokr | None:
        names = weights.w.keys()
        both = all(
            f"lokr_w{side}" in names or {f"lokr_w{side}_a", f"lokr_w{side}_b"} <= names
            for side in (1, 2)
        )
        return NetworkModuleLokr(net, weights) if both else None


class NetworkModuleLokr(network.NetworkModule):
    """A Kronecker product, of which each side may be a product itself."""

    def __init__(self, net: network.Network, weights: network.NetworkWeights):
        super().__init__(net, weights)
        w = weights.w
        self.w1, self.w1a, self.w1b = (w.get(f"lokr_w1{x}") for x in ("", "_a", "_b"))
        self.w2, self.w2a, self.w2b = (w.get(f"lokr_w2{x}") for x in ("", "_a", "_b"))
        self.t2 = w.get("lokr_t2")
        for b in (self.w1b, self.w2b):
            self.dim = self.dim if b is None else b.shape[0]

    def calc_updown(self, orig_weight: Tensor) -> tuple[Tensor, Tensor | None]:
        w1: Any = self.w1 if self.w1 is not None else self.w1a @ self.w1b  # type: ignore[operator]
        w2: Any = self.w2
        if w2 is None:
            a, b = self.w2a, self.w2b
            w2 = a @ b if self.t2 is None else _tucker(self.t2, a, b)  # type: ignore
        shape: Any = [w1.size(0) * w2.size(0), w1.size(1) * w2.size(1)]
        if orig_weight.ndim == 4:
            shape = orig_weight.shape
        if w2.ndim == 4:
            w1 = w1.unsqueeze(2).unsqueeze(2)
        updown = torch.kron(w1, w2.contiguous()).reshape(shape)
        return self.finalize_updown(updown, orig_weight, shape)


class ModuleTypeGLora:
    def create_module(self, net: Any, weights: Any) -> NetworkModuleGLora | None:
        names = {"a1.weight", "a2.weight", "alpha", "b1.weight", "b2.weight"}
        return NetworkModuleGLora(net, weights) if names <= weights.w.keys() else None


class NetworkModuleGLora(network.NetworkModule):
    def __init__(self, net: network.Network, weights: network.NetworkWeights):
        super().__init__(net, weights)
        self.a1, self.a2, self.b1, self.b2 = (
            weights.w[f"{which}.weight"] for which in ("a1", "a2", "b1", "b2")
        )

    def calc_updown(self, orig_weight: Tensor) -> tuple[Tensor, Tensor | None]:
        shape = [self.a1.size(0), self.b1.size(1)]
        updown = self.b2 @ self.b1 + (orig_weight.to(self.a1.dtype) @ self.a2) @ self.a1
        return self.finalize_updown(updown, orig_weight, shape)


class ModuleTypeNorm:
    def create_module(self, net: Any, weights: Any) -> NetworkModuleNorm | None:
        names = {"w_norm", "b_norm"}
        return NetworkModuleNorm(net, weights) if names <= weights.w.keys() else None


class NetworkModuleNorm(network.NetworkModule):
    def __init__(self, net: network.Network, weights: network.NetworkWeights):
        super().__init__(net, weights)
        self.w_norm, self.b_norm = weights.w["w_norm"], weights.w["b_norm"]

    def calc_updown(self, orig_weight: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.finalize_updown(self.w_norm, orig_weight, self.w_norm.shape, self.b_norm)
