"""Units: the kinds of layers that are compiled, each once and apart from its weights.

A unit is a residual block, a spatial transformer or the output layer. Its weights are inputs of the
compiled code, not constants in it: one compiled unit serves every layer of the same spec in every
checkpoint, an in-place change of a weight is seen by the next call, and ControlNets, inpainting
models and other families share the units that they have in common. Single convolutions (the first
one, down- and upsampling) are not compiled: there is nothing to fuse in them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..model import specs
from ..model.architecture import Architecture
from ..model.layers import GroupNorm, build_layer
from ..store import recipe_key

UnitFn = Callable[[list[Tensor]], Tensor]
"""A compiled unit: `[h, *weights]` or `[h, side, *weights]` -> `[B, C', H', W']`.

`h: [B, C, H, W]` and the result are channels-last, `side` is `emb: [B, E]` or `context: [B, L, D]`,
and the weights are those of the layer, in the order of its parameters and in `to_unit_layout`.
All have the unit's dtype and device. Nothing is checked: other tensors are read out of bounds.
"""

_SIDE = {specs.ResBlock: "emb", specs.SpatialTransformer: "context", specs.Output: None}


def units_of(architecture: Architecture) -> tuple[specs.Spec, ...]:
    """Return the distinct units of `architecture`, in the order of their first use."""
    return tuple(dict.fromkeys(layer for _, layer in architecture.layers() if type(layer) in _SIDE))


def side_input(unit: specs.Spec) -> str | None:
    """Return which second activation the unit takes: "emb", "context" or None."""
    return _SIDE[type(unit)]


def input_widths(unit: specs.Spec) -> tuple[int, ...]:
    """Return the channels of each activation that the unit takes: `(C,)` or `(C, E or D)`."""
    if isinstance(unit, specs.SpatialTransformer):
        return unit.channels, unit.context_dim
    if isinstance(unit, specs.ResBlock):
        return unit.in_channels, unit.emb_channels
    return (unit.in_channels,)


def widest(unit: specs.Spec) -> int:
    """Return the channels of the widest activation inside (a transformer's: its feed-forward)."""
    if isinstance(unit, specs.SpatialTransformer):
        return 8 * unit.channels
    return max(unit.in_channels, unit.out_channels)  # type: ignore[union-attr]


def describe(unit: specs.Spec) -> str:
    """Return a short name for people, as `ResBlock 320 -> 640` or `SpatialTransformer 320 x1`."""
    if isinstance(unit, specs.SpatialTransformer):
        return f"SpatialTransformer {unit.channels} x{unit.depth}"
    return f"{type(unit).__name__} {unit.in_channels} -> {unit.out_channels}"


def unit_key(unit: specs.Spec) -> str:
    """Return a short name that is unique and safe in a path, as `ResBlock-1f0c9a3b5d7e`."""
    return f"{type(unit).__name__}-{recipe_key(specs.spec_to_dict(unit))[:12]}"


class UnitModule(nn.Module):
    """A unit as a function of its activations and its weights: what is traced and exported."""

    def __init__(self, unit: specs.Spec):
        super().__init__()
        self.side = side_input(unit)
        # A tuple hides the layer from torch: a submodule's empty parameters would be exported.
        self._layer = (build_layer(unit),)
        self.names = [name for name, _ in self._layer[0].named_parameters()]
        for module in self._layer[0].modules():
            if isinstance(module, GroupNorm):
                module.fused = True

    def forward(self, activations: list[Tensor], weights: list[Tensor]) -> Tensor:
        """Compute `[h]` or `[h, side]` and weights in the order of `names` -> `[B, C', H', W']`."""
        h = activations[0]
        side = activations[1] if self.side else h
        parameters = dict(zip(self.names, weights, strict=True))
        return torch.func.functional_call(self._layer[0], parameters, (h, side, side))

    def shapes(self) -> list[torch.Size]:
        """Return the shapes of the weights, in the order of `names`."""
        return [p.shape for p in self._layer[0].parameters()]


def to_unit_layout(weight: Tensor) -> Tensor:
    """Return `weight` in the memory layout that compiled units read; itself where it has it.

    Convolutions on a GPU are channels-last, everything else is contiguous.
    """
    conv = weight.ndim == 4 and weight.device.type == "cuda"
    return weight.contiguous(memory_format=torch.channels_last if conv else torch.contiguous_format)
