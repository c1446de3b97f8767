"""What the modules of a live UNet are where they compute what our own layers compute.

The reference is `model/layers.py`: its formulas, written once more as the classes, the settings and
the parts that the LDM code (`ldm`, `sgm`) has for them. What differs from it is foreign, also where
it was there before acceleration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...model import specs
from ...model.architecture import Architecture


@dataclass(frozen=True)
class Blueprint:
    """One module: its class by name, and by name its settings and its parts.

    `settings`: alternatives, one of which its attributes must have. An attribute that a version of
    the class lacks is not asked for. `container`: it runs all its parts, in this order; of other
    modules only these parts are run. `weights`: it has parameters. No `kinds`: any class will do.
    """

    kinds: tuple[str, ...]
    settings: tuple[Mapping[str, Any], ...] = ({},)
    parts: Mapping[str, Blueprint] = field(default_factory=dict)
    container: bool = False
    weights: bool = False

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of all settings."""
        return list(dict.fromkeys(name for each in self.settings for name in each))

    @functools.cached_property
    def attributes(self) -> list[str]:
        """The names of all attributes that the module is computed from."""
        return [*self.names, *self.parts, *(("weight", "bias") if self.weights else ())]


def of_unet(a: Architecture) -> Blueprint:
    """Return the blueprint of a whole UNet."""
    emb = _sequence(_LINEAR, _SILU, _LINEAR)
    parts = {
        "time_embed": emb,
        "input_blocks": _list(*map(_block, a.input_blocks)),
        "middle_block": _block(a.middle_block),
        "output_blocks": _list(*map(_block, a.output_blocks)),
        "out": of_layer(a.output),
    }
    settings: dict[str, Any] = {"model_channels": a.model_channels, "predict_codebook_ids": False}
    if a.adm_channels is None:
        settings["num_classes"] = None
    else:
        settings["num_classes"] = "sequential"
        parts["label_emb"] = _sequence(emb)
    return Blueprint((), (settings,), parts)


def of_layer(spec: specs.Spec) -> Blueprint:
    """Return the blueprint of one layer."""
    return _LAYERS[type(spec)](spec)


def _numbered(parts: tuple[Blueprint, ...]) -> dict[str, Blueprint]:
    return {str(i): part for i, part in enumerate(parts)}


def _sequence(*parts: Blueprint) -> Blueprint:
    return Blueprint(("Sequential",), ({},), _numbered(parts), container=True)


def _list(*parts: Blueprint) -> Blueprint:
    return Blueprint(("ModuleList",), ({},), _numbered(parts), container=True)


def _block(block: specs.Block) -> Blueprint:
    parts = _numbered(tuple(map(of_layer, block)))
    return Blueprint(("TimestepEmbedSequential",), ({},), parts, container=True)


def conv(kernel: int = 3, stride: int = 1, padding: int | None = None) -> Blueprint:
    """Return the blueprint of a convolution."""
    padding = kernel // 2 if padding is None else padding
    settings = {
        "stride": (stride, stride),
        "padding": (padding, padding),
        "dilation": (1, 1),
        "groups": 1,
        "transposed": False,
        "padding_mode": "zeros",
    }
    return Blueprint(("Conv2d",), (settings,), weights=True)


def group_norm(eps: float = 1e-5) -> Blueprint:
    """Return the blueprint of a group normalisation."""
    settings = {"num_groups": specs.NORM_GROUPS, "eps": eps}
    return Blueprint(("GroupNorm32", "GroupNorm"), (settings,), weights=True)


def _layer_norm(channels: int) -> Blueprint:
    settings = {"normalized_shape": (channels,), "eps": 1e-5}
    return Blueprint(("LayerNorm",), (settings,), weights=True)


_LINEAR = Blueprint(("Linear",), weights=True)
_SILU = Blueprint(("SiLU",), ({"inplace": False},))  # in place it would change `emb` for all
_IDENTITY = Blueprint(("Identity",))
DROPOUT = Blueprint(("Dropout",), ({"training": False}, {"p": 0}))


def _resblock(spec: specs.ResBlock) -> Blueprint:
    same = spec.in_channels == spec.out_channels
    settings = {
        "updown": False,
        "use_scale_shift_norm": False,
        "skip_t_emb": False,
        "exchange_temb_dims": False,
    }
    parts = {
        "in_layers": _sequence(group_norm(), _SILU, conv()),
        "emb_layers": _sequence(_SILU, _LINEAR),
        "out_layers": _sequence(group_norm(), _SILU, DROPOUT, conv()),
        "skip_connection": _IDENTITY if same else conv(kernel=1),
    }
    return Blueprint(("ResBlock",), (settings,), parts)


def _attention(channels: int, heads: int) -> Blueprint:
    width = channels // heads
    settings = {
        "heads": heads,
        "dim_head": width,
        "scale": width**-0.5,
        "backend": None,
        "attention_op": None,
    }
    parts = {
        **dict.fromkeys(("to_q", "to_k", "to_v"), _LINEAR),
        "to_out": _sequence(_LINEAR, DROPOUT),
    }
    return Blueprint(("CrossAttention", "MemoryEfficientCrossAttention"), (settings,), parts)


def _transformer_block(channels: int, heads: int) -> Blueprint:
    geglu = Blueprint(("GEGLU",), ({},), {"proj": _LINEAR})
    feed_forward = Blueprint(("FeedForward",), ({},), {"net": _sequence(geglu, DROPOUT, _LINEAR)})
    parts = {
        **dict.fromkeys(("attn1", "attn2"), _attention(channels, heads)),
        "ff": feed_forward,
        **dict.fromkeys(("norm1", "norm2", "norm3"), _layer_norm(channels)),
    }
    return Blueprint(("BasicTransformerBlock",), ({"disable_self_attn": False},), parts)


def _transformer(spec: specs.SpatialTransformer) -> Blueprint:
    projection = _LINEAR if spec.linear else conv(kernel=1)
    block = _transformer_block(spec.channels, spec.heads)
    parts = {
        "norm": group_norm(eps=1e-6),
        "proj_in": projection,
        "transformer_blocks": _list(*[block] * spec.depth),
        "proj_out": projection,
    }
    return Blueprint(("SpatialTransformer",), ({"use_linear": spec.linear},), parts)


def _downsample(spec: specs.Downsample) -> Blueprint:
    settings = {"channels": spec.in_channels}
    return Blueprint(("Downsample",), (settings,), {"op": conv(stride=2)})


def _upsample(spec: specs.Upsample) -> Blueprint:
    settings = {"channels": spec.in_channels, "use_conv": True, "dims": 2}
    return Blueprint(("Upsample",), (settings,), {"conv": conv()})


_LAYERS: dict[type, Callable[..., Blueprint]] = {
    specs.Conv: lambda spec: conv(),
    specs.Downsample: _downsample,
    specs.Upsample: _upsample,
    specs.ResBlock: _resblock,
    specs.SpatialTransformer: _transformer,
    specs.Output: lambda spec: _sequence(group_norm(), _SILU, conv()),
}
