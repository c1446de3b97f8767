"""What the modules of half a live VAE are where they compute what our own layers compute.

See `host/unet/blueprint.py`; the classes are those of `ldm/modules/diffusionmodules/model.py`, and
of the file of this name in `sgm`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...model import specs
from ...model.vae.layers import EPS
from ...model.vae.network import DECODER, OUTPUT, Half
from ..unet.blueprint import DROPOUT, Blueprint, conv, group_norm


def of_half(half: Half) -> Blueprint:
    """Return the blueprint of a whole decoder or encoder."""
    settings = {"give_pre_end": False, "tanh_out": False} if half.kind == DECODER else {}
    parts = {name: _LAYERS[type(spec)](spec) for name, spec in half.layers if name != OUTPUT}
    output = {"norm_out": group_norm(EPS), "conv_out": conv()}
    return Blueprint((half.kind.title(),), (settings,), _tree({**parts, **output}))


def _tree(parts: dict[str, Blueprint]) -> dict[str, Blueprint]:
    """Return parts of dotted names as parts of parts; what is between them may be any class."""
    inner: dict[str, dict[str, Blueprint]] = {}
    for name, part in parts.items():
        first, _, rest = name.partition(".")
        inner.setdefault(first, {})[rest] = part
    return {
        name: found[""] if "" in found else Blueprint((), ({},), _tree(found))
        for name, found in inner.items()
    }


def _block(spec: specs.VaeBlock) -> Blueprint:
    parts = {
        "norm1": group_norm(EPS),
        "conv1": conv(),
        "norm2": group_norm(EPS),
        "dropout": DROPOUT,
        "conv2": conv(),
    }
    if spec.in_channels != spec.out_channels:
        parts["nin_shortcut"] = conv(kernel=1)
    settings: dict[str, Any] = {
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "use_conv_shortcut": False,
    }
    return Blueprint(("ResnetBlock",), (settings,), parts)


def _attention(spec: specs.VaeAttention) -> Blueprint:
    parts = {"norm": group_norm(EPS), **dict.fromkeys(("q", "k", "v", "proj_out"), conv(kernel=1))}
    return Blueprint(("AttnBlock", "MemoryEfficientAttnBlock"), ({"attention_op": None},), parts)


def _resampling(kind: str, convolution: Blueprint) -> Blueprint:
    return Blueprint((kind,), ({"with_conv": True},), {"conv": convolution})


_LAYERS: dict[type, Callable[..., Blueprint]] = {
    specs.Conv: lambda spec: conv(),
    specs.Upsample: lambda spec: _resampling("Upsample", conv()),
    specs.VaeBlock: _block,
    specs.VaeAttention: _attention,
    specs.VaeDownsample: lambda spec: _resampling("Downsample", conv(stride=2, padding=0)),
}
