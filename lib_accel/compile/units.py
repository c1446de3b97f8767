"""Units: the kinds of layers that are compiled, each once and apart from its weights.

A unit is a residual block, a spatial transformer, the output layer, or the time embedding with all
its projections; of a VAE, a residual block, the attention or the output layer. Its weights are
inputs of the compiled code, not constants in it: one compiled unit serves every layer of the same
spec in every checkpoint, an in-place change of a weight is seen by the next call, and ControlNets,
inpainting models and other families share the units that they have in common. Single convolutions
(the first one, down- and upsampling) are not compiled: there is nothing to fuse in them. Upsampling
is a unit only where a backend has its own kernels, which are faster than torch's.

What a layer computes of `emb` or of the context alone is not in its unit, but an input that is
prepared: by the unit of the embedding for all blocks, and once for all steps of a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..model import specs
from ..model.architecture import Architecture
from ..model.layers import ResBlock, build_layer
from ..model.parts.embedding import Embedding, FewRows
from ..model.parts.modules import GroupNorm
from ..store import recipe_key

UnitFn = Callable[[list[Tensor]], Tensor]
"""A compiled unit: `[*activations, *weights]` -> one tensor.

The activations of a layer are `h: [B, C, H, W]` and, for a residual block, its projection of the
time embedding, `[B, C']`, for a transformer the keys and values of the context for each of its
blocks, `[B, L, C]`; h and the result, `[B, C', H', W']`, are channels-last. On a GPU, a block with
a skip connection takes two images instead of h (`image_widths`). The weights are in the order of
`UnitModule.names` and in `to_unit_layout`. All have the unit's dtype and device. The inputs of the
embedding are in `model/parts/embedding.py`; timesteps and frequencies are float32. Nothing is
checked: other tensors are read out of bounds. A unit that cannot compute every size has a method
`why_not`, which takes the activations and returns the reason, or None.
"""

Size = tuple[int, int, int, int]
"""B, H, W and L: of a batch, of an activation and of the context."""

SMALLEST_SIDE = 16
"""Height of SD1's deepest level but one at 512x512 pixels."""

_PREPARING = re.compile(r"^emb_layers\.|\.attn2\.to_[kv]\.")
"""The weights of a layer that `prepare` uses, by their names."""

_VAE_LAYERS = (specs.VaeBlock, specs.VaeAttention, specs.VaeOutput)
_LAYERS = (specs.ResBlock, specs.SpatialTransformer, specs.Output, *_VAE_LAYERS)
_OVER_PIXELS = (specs.SpatialTransformer, specs.VaeAttention)


def units_of(architecture: Architecture) -> tuple[specs.Spec, ...]:
    """Return the distinct units of `architecture`, in the order of their first use."""
    return architecture.embedding, *units_among(layer for _, layer in architecture.layers())


def units_among(layers: Iterable[specs.Spec]) -> tuple[specs.Spec, ...]:
    """Return the distinct units among the layers of a network, in the order of their first use."""
    return tuple(dict.fromkeys(layer for layer in layers if isinstance(layer, _LAYERS)))


def upsamplings_among(layers: Iterable[specs.Spec]) -> tuple[specs.Spec, ...]:
    """Return the distinct upsamplings among the layers of a network."""
    return tuple(dict.fromkeys(layer for layer in layers if isinstance(layer, specs.Upsample)))


def image_widths(unit: specs.Spec, device: torch.device) -> tuple[int, ...]:
    """Return the channels of each image that a layer takes.

    It is one. But on a GPU, what comes through a skip connection is apart: concatenating takes
    longer there than reading two tensors.
    """
    if isinstance(unit, _OVER_PIXELS):
        return (unit.channels,)
    if isinstance(unit, specs.ResBlock) and unit.skip_channels and device.type == "cuda":
        return unit.in_channels - unit.skip_channels, unit.skip_channels
    return (unit.in_channels,)  # type: ignore[union-attr]


def side_widths(unit: specs.Spec) -> tuple[int, ...]:
    """Return the channels of each activation that a layer takes besides images."""
    if isinstance(unit, specs.SpatialTransformer):
        return (unit.channels,) * (2 * unit.depth)
    return (unit.out_channels,) if isinstance(unit, specs.ResBlock) else ()


def activation_shapes(unit: specs.Spec, size: Size, device: torch.device) -> list[tuple[int, ...]]:
    """Return the shape of each activation that the unit takes for `size` on `device`."""
    batch, height, width, length = size
    if isinstance(unit, specs.Embedding):
        return [(batch,), *([(batch, unit.adm_channels)] if unit.adm_channels else [])]
    before = (batch, length) if isinstance(unit, specs.SpatialTransformer) else (batch,)
    images = [(batch, channels, height, width) for channels in image_widths(unit, device)]
    return [*images, *((*before, each) for each in side_widths(unit))]


def level_side(unit: specs.Spec) -> int:
    """Return the height, in latents, of the level where SD1 has the unit's width at 512x512 pixels.

    It is half that of SDXL at its own size. A VAE has widths at larger levels than these too, which
    would take a CPU long to check. Units that are narrower than SD1's are for tests: a VAE's
    attention is at its innermost level alone, where SD1 has 512 channels.
    """
    if isinstance(unit, specs.Embedding):
        return SMALLEST_SIDE
    width = unit.channels if isinstance(unit, _OVER_PIXELS) else unit.out_channels
    if isinstance(unit, (specs.Output, specs.VaeOutput)):
        width = unit.in_channels
    if isinstance(unit, _VAE_LAYERS):
        least = 512 if isinstance(unit, specs.VaeAttention) else 128
        return 64 * 512 // width if width >= least else SMALLEST_SIDE
    return max(SMALLEST_SIDE, 64 * 320 // width) if width >= 320 else SMALLEST_SIDE


def trace_size(unit: specs.Spec) -> Size:
    """Return the size of the example that a unit is compiled with.

    The code serves all sizes, but the compiler chooses for this one, that of the unit's level. All
    numbers differ, none is 1 and none a number of channels, so none becomes a constant.
    """
    side = level_side(unit)
    return 2, side - 1, side + 1, 77


def widest(unit: specs.Spec) -> int:
    """Return the channels of the widest activation of a layer (a transformer's: feed-forward)."""
    if isinstance(unit, specs.SpatialTransformer):
        return 8 * unit.channels
    if isinstance(unit, specs.VaeAttention):
        return unit.channels
    if isinstance(unit, specs.Upsample):  # its result has four times as many pixels
        return 4 * max(unit.in_channels, unit.out_channels)
    return max(unit.in_channels, unit.out_channels)  # type: ignore[union-attr]


def describe(unit: specs.Spec) -> str:
    """Return a short name for people, as `ResBlock 320 -> 640` or `SpatialTransformer 320 x1`."""
    if isinstance(unit, specs.SpatialTransformer):
        return f"SpatialTransformer {unit.channels} x{unit.depth}"
    if isinstance(unit, specs.VaeAttention):
        return f"VaeAttention {unit.channels}"
    if isinstance(unit, specs.Embedding):
        return f"Embedding {unit.model_channels} -> {unit.emb_channels} x{len(unit.widths)}"
    return f"{type(unit).__name__} {unit.in_channels} -> {unit.out_channels}"


def unit_key(unit: specs.Spec) -> str:
    """Return a short name that is unique and safe in a path, as `ResBlock-1f0c9a3b5d7e`."""
    return f"{type(unit).__name__}-{recipe_key(specs.spec_to_dict(unit))[:12]}"


class UnitModule(nn.Module):
    """A unit as a function of its activations and its weights.

    `fused`: written for a compiler to trace, on a GPU. Otherwise it computes with torch's kernels.
    """

    def __init__(self, unit: specs.Spec, fused: bool = False):
        super().__init__()
        layer = Embedding(unit) if isinstance(unit, specs.Embedding) else build_layer(unit)
        # A tuple hides the layer from torch: a submodule's empty parameters would be exported.
        self._layer = (_Computing(layer),)
        for module in self._layer[0].modules():
            if isinstance(module, FewRows | ResBlock):
                module.fused = fused
            if isinstance(module, GroupNorm):
                module.in_unit, module.fused_for = True, level_side(unit) if fused else 0
        self._weights = weights_of(self._layer[0].layer)
        self.names = list(self._weights)

    def forward(self, activations: list[Tensor], weights: list[Tensor]) -> Tensor:
        """Compute the unit from its activations and its weights, in the order of `names`."""
        parameters = {f"layer.{n}": w for n, w in zip(self.names, weights, strict=True)}
        return torch.func.functional_call(self._layer[0], parameters, tuple(activations))

    def shapes(self) -> list[torch.Size]:
        """Return the shapes of the weights, in the order of `names`."""
        return [p.shape for p in self._weights.values()]


class _Computing(nn.Module):
    """A layer without what is prepared for it."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *activations: Tensor) -> Tensor:
        return self.layer.compute(*activations)  # type: ignore[operator]


def weights_of(layer: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the layer's unit by name: all but those that prepare its inputs."""
    # a weight that stands in two places counts twice
    named = layer.named_parameters(remove_duplicate=False)
    return {name: p for name, p in named if not _PREPARING.search(name)}


def to_unit_layout(weight: Tensor, channels_last: bool = True) -> Tensor:
    """Return `weight` in the memory layout that compiled units read; itself where it has it.

    With `channels_last`, convolutions on a GPU are; everything else is contiguous.
    """
    conv = channels_last and weight.ndim == 4 and weight.device.type == "cuda"
    return weight.contiguous(memory_format=torch.channels_last if conv else torch.contiguous_format)
