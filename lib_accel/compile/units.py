"""The compiled unit: one residual block, one spatial transformer or the output layer, apart from its weights.

Weights are inputs of the compiled code, not constants in it. So one compiled unit serves every layer of the same spec in
every checkpoint, there is nothing to bind, an in-place change is seen by the next call, and a ControlNet, an inpainting
model or another family shares whatever units it has in common. Single convolutions (the first one, down- and upsampling)
have nothing to fuse and stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..model import specs
from ..model.architecture import Architecture
from ..model.layers import build_layer

UnitFn = Callable[[list[Tensor]], Tensor]
"""Compiled code: `[h, side input if any, *weights] -> [B, C', H', W']`, channels-last in and out."""

_SIDE = {specs.ResBlock: "emb", specs.SpatialTransformer: "context", specs.Output: None}


def units_of(architecture: Architecture) -> tuple[specs.Spec, ...]:
    """The distinct units of an architecture, in the order of first use."""
    return tuple(dict.fromkeys(layer for _, layer in architecture.layers() if type(layer) in _SIDE))


def side_input(layer: specs.Spec) -> str | None:
    """Which second activation the unit takes: "emb", "context" or none."""
    return _SIDE[type(layer)]


def input_widths(layer: specs.Spec) -> tuple[int, ...]:
    """Channels of h and, where the unit takes one, of the second activation."""
    if isinstance(layer, specs.SpatialTransformer):
        return layer.channels, layer.context_dim
    return (
        (layer.in_channels, layer.emb_channels)
        if isinstance(layer, specs.ResBlock)
        else (layer.in_channels,)
    )


def widest(layer: specs.Spec) -> int:
    """Channels of the widest activation inside: of a transformer what its gated feed-forward is expanded to."""
    if isinstance(layer, specs.SpatialTransformer):
        return 8 * layer.channels
    return max(layer.in_channels, layer.out_channels)  # type: ignore[union-attr]


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def unit_key(layer: specs.Spec) -> str:
    """A short name for the spec, safe as a file name: `ResBlock-1f0c9a3b5d7e`."""
    digest = hashlib.sha256(canonical_json(specs.spec_to_dict(layer)).encode()).hexdigest()
    return f"{type(layer).__name__}-{digest[:12]}"


class UnitModule(nn.Module):
    """What is exported: the layer as a function of `activations` ([h] or [h, side]) and `weights` (in `names` order)."""

    def __init__(self, layer: specs.Spec):
        super().__init__()
        self.side = side_input(layer)
        # in a tuple so that it is no submodule: its storage-less parameters must not become constants of the exported program
        self._layer = (build_layer(layer),)
        self.names = [name for name, _ in self._layer[0].named_parameters()]

    def forward(self, activations: list[Tensor], weights: list[Tensor]) -> Tensor:
        h = activations[0]
        side = activations[1] if self.side else h
        parameters = dict(zip(self.names, weights, strict=True))
        return torch.func.functional_call(self._layer[0], parameters, (h, side, side))

    def shapes(self) -> list[torch.Size]:
        return [p.shape for p in self._layer[0].parameters()]


def example_inputs(
    layer: specs.Spec,
    size: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
) -> tuple[list[Tensor], list[Tensor]]:
    """Random activations and weights for `size = (B, H, W, L)`; the weights are scaled so that activations stay near 1."""
    g = torch.Generator().manual_seed(seed)
    batch, height, width, length = size
    channels, *side = input_widths(layer)
    shapes: list[tuple[int, ...]] = [(batch, channels, height, width)]
    if side:
        shapes.append((batch, *side) if side_input(layer) == "emb" else (batch, length, *side))
    activations = [torch.randn(s, generator=g) for s in shapes]
    module = UnitModule(layer)
    weights = []
    for name, shape in zip(module.names, module.shapes(), strict=True):
        w = torch.randn(shape, generator=g)
        if len(shape) > 1:
            w *= shape[1:].numel() ** -0.5
        else:
            w = 0.02 * w if name.endswith("bias") else 1 + 0.05 * w
        weights.append(w)
    activations = [a.to(device, dtype) for a in activations]
    activations[0] = activations[0].contiguous(memory_format=torch.channels_last)
    return activations, [in_layout(w.to(device, dtype)) for w in weights]


def in_layout(weight: Tensor) -> Tensor:
    """The memory layout compiled code expects of a weight: channels-last convolutions on a GPU, else plain contiguous."""
    conv = weight.ndim == 4 and weight.device.type == "cuda"
    return weight.contiguous(memory_format=torch.channels_last if conv else torch.contiguous_format)


def describe(layer: specs.Spec) -> str:
    """For progress lines: `ResBlock 320 -> 640`."""
    if isinstance(layer, specs.SpatialTransformer):
        return f"SpatialTransformer {layer.channels} x{layer.depth}"
    return f"{type(layer).__name__} {layer.in_channels} -> {layer.out_channels}"
