"""Networks (LoRAs and their like) and what each does to one layer."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn


class NetworkWeights(NamedTuple):
    network_key: str
    sd_key: str
    w: dict[str, Tensor]
    sd_module: nn.Module


class Network:
    def __init__(self, name: str, network_on_disk: Any):
        self.name, self.network_on_disk = name, network_on_disk
        self.mentioned_name = name
        self.mtime: float = 0  # of its file, when that was read
        self.te_multiplier = self.unet_multiplier = 1.0
        self.dyn_dim: int | None = None
        self.modules: dict[str, NetworkModule] = {}


class NetworkModule:
    def __init__(self, net: Network, weights: NetworkWeights):
        self.network, self.sd_key, self.sd_module = net, weights.sd_key, weights.sd_module
        self.dim: int | None = None
        self.bias = weights.w.get("bias")
        self.alpha = weights.w["alpha"].item() if "alpha" in weights.w else None
        self.scale = weights.w["scale"].item() if "scale" in weights.w else None
        self.dora_scale = weights.w.get("dora_scale")
        self.shape: Any = weights.sd_module.weight.shape

    def multiplier(self) -> float:
        return (
            self.network.te_multiplier
            if "transformer" in self.sd_key[:20]
            else self.network.unet_multiplier
        )

    def calc_scale(self) -> float:
        if self.scale is not None:
            return self.scale
        return 1.0 if self.dim is None or self.alpha is None else self.alpha / self.dim

    def finalize_updown(
        self, updown: Tensor, orig_weight: Tensor, output_shape: Any, ex_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Scale the delta. Raises RuntimeError where the network is for another shape."""
        if self.bias is not None:
            updown = updown.reshape(self.bias.shape)
            updown += self.bias
            updown = updown.reshape(output_shape)
        if len(output_shape) == 4:
            updown = updown.reshape(output_shape)
        if updown.numel() == orig_weight.numel():
            updown = updown.reshape(orig_weight.shape)
        more = None if ex_bias is None else ex_bias * self.multiplier()
        updown = updown * self.calc_scale()
        if self.dora_scale is not None:
            updown = self._decomposed(updown, orig_weight)
        return updown * self.multiplier(), more

    def _decomposed(self, updown: Tensor, orig_weight: Tensor) -> Tensor:
        """DoRA: give each input channel of the merged weight the length that the file names."""
        merged = updown + orig_weight
        flat = merged.transpose(0, 1).reshape(merged.shape[1], -1)
        norm = flat.norm(dim=1).reshape(1, -1, *[1] * (len(self.shape) - 2))
        return merged * (self.dora_scale / norm) - orig_weight

    def calc_updown(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add this network to the output of a linear layer (the old method)."""
        weight, bias = self.calc_updown(self.sd_module.weight)  # type: ignore[arg-type]
        return y + nn.functional.linear(x, weight, bias)
