"""Specs: what each layer of a UNet or a VAE is, apart from its weights.

A spec is a frozen value. Layers with equal specs run the same compiled code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

# Facts of the family that no parameter's shape tells.
NORM_GROUPS = 32  # groups of every GroupNorm; the LDM code has no option for it
SD1_HEADS = 8  # attention heads of every SD1.x transformer
CHANNELS_PER_HEAD = 64  # in the transformers of SD2.x and SDXL


@dataclass(frozen=True)
class Conv:
    """3x3 convolution: `x: [B, in_channels, H, W] -> [B, out_channels, H, W]`."""

    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class Downsample:
    """3x3 convolution of stride 2: `[B, C, H, W] -> [B, out_channels, ceil(H/2), ceil(W/2)]`."""

    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class Upsample:
    """Nearest x2 and a 3x3 convolution: `[B, C, H, W] -> [B, out_channels, 2H, 2W]`."""

    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class ResBlock:
    """Residual block: `x: [B, in_channels, H, W]`, `emb: [B, emb_channels]` -> `out_channels`."""

    in_channels: int
    out_channels: int
    emb_channels: int
    skip_channels: int = 0  # the last of in_channels, which come through a skip connection


@dataclass(frozen=True)
class SpatialTransformer:
    """`depth` transformer blocks over the H*W positions of `x: [B, channels, H, W]`.

    Each attends to itself and to `context: [B, L, context_dim]`.
    """

    channels: int
    context_dim: int
    heads: int
    depth: int
    linear: bool  # proj_in and proj_out are linear layers, not 1x1 convolutions


@dataclass(frozen=True)
class Output:
    """GroupNorm, SiLU, 3x3 convolution: `[B, in_channels, H, W] -> [B, out_channels, H, W]`."""

    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class Embedding:
    """The time embedding of a whole UNet, and what all its residual blocks project it to.

    `timesteps: [B]`, `y: [B, adm_channels]` or none -> `emb: [B, emb_channels]` and `[B, width]`
    for each residual block.
    """

    model_channels: int
    emb_channels: int
    adm_channels: int | None
    widths: tuple[int, ...]  # of the residual blocks, in the order of a forward pass


@dataclass(frozen=True)
class VaeBlock:
    """Residual block of a VAE, without an embedding: `[B, in_channels, H, W] -> out_channels`."""

    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class VaeAttention:
    """Attention of one head over the H*W positions of `x: [B, channels, H, W]`, added to it."""

    channels: int


@dataclass(frozen=True)
class VaeDownsample:
    """3x3 convolution of stride 2 without padding at the top and left: `[B, C, H/2, W/2]`."""

    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class VaeOutput:
    """As Output, with the epsilon and the parameter names of a VAE."""

    in_channels: int
    out_channels: int


Spec = (
    Conv
    | Downsample
    | Upsample
    | ResBlock
    | SpatialTransformer
    | Output
    | Embedding
    | VaeBlock
    | VaeAttention
    | VaeDownsample
    | VaeOutput
)
Block = tuple[Spec, ...]
"""The specs of one input, middle or output block, in the order they run."""

_TYPES: dict[str, type[Spec]] = {t.__name__: t for t in get_args(Spec)}


def spec_to_dict(spec: Spec) -> dict[str, Any]:
    """Return the spec as plain JSON values: its type's name under `layer`, and its fields.

    Several numbers are one text: `"320 640"`.
    """
    fields = dataclasses.asdict(spec).items()
    texts = {k: " ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in fields}
    return {"layer": type(spec).__name__, **texts}


def spec_from_dict(data: Mapping[str, Any]) -> Spec:
    """Return the spec that `spec_to_dict` made `data` of.

    Raises KeyError for an unknown type and TypeError for missing or unknown fields.
    """
    fields = {k: v for k, v in data.items() if k != "layer"}
    numbers = {k: tuple(map(int, v.split())) for k, v in fields.items() if isinstance(v, str)}
    return _TYPES[data["layer"]](**{**fields, **numbers})
