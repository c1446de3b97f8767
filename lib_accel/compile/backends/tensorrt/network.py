"""A UNet, or one of its layers, as a list of a few kinds of operations, without weights.

TensorRT's network is written from this list (writer.py), and the tests compute it with torch. The
formulas are those of `model/layers.py` and `model/unet.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ....model import specs
from ....model.architecture import Architecture
from ....model.layers import build_layer
from ....model.unet import UNet
from ...units import image_widths, side_widths, weights_of, widest

KINDS = (
    "sinusoids",  # t: [B] float32 -> [B, channels], cosines before sines
    "linear",  # [..., I], weight [O, I] or [O, I, 1, 1], bias [O] or none -> [..., O]
    "convolution",  # [B, I, H, W], weight [O, I, K, K], bias [O], zero-padded by K // 2
    "group_norm",  # [B, C, H, W], weight [C], bias [C]
    "layer_norm",  # [B, N, C], weight [C], bias [C]: over the last dimension
    "silu",
    "geglu",  # [B, N, 2C] -> [B, N, C]: the first half times the GELU of the second
    "attention",  # q: [B, N, C], k and v: [B, L, C] -> [B, N, C]
    "add",
    "add_per_channel",  # [B, C, H, W] and [B, C]
    "tokens",  # [B, C, H, W] -> [B, H*W, C]
    "pixels",  # [B, H*W, C], and a tensor [., ., H, W] -> [B, C, H, W]
    "upsample",  # [B, C, H, W] -> [B, C, 2H, 2W], nearest
    "join",  # [B, C, H', W'] and [B, D, H, W] -> [B, C+D, H, W]; H' is H or H+1, and is cut to H
)


@dataclass(frozen=True)
class Operation:
    """One operation: names of its inputs (activations, then weights), and its one output."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    settings: Mapping[str, float] = field(default_factory=dict)  # eps, groups, heads, stride, ...


@dataclass(frozen=True)
class Network:
    """Operations in the order in which they can be computed.

    Shapes of `activations` have a name for each dynamic size: B, H, W (in latents, or of the unit's
    activation) and L (tokens). `weights` are in the order in which units are given them.
    """

    activations: Mapping[str, tuple[int | str, ...]]
    weights: Mapping[str, tuple[int, ...]]
    operations: tuple[Operation, ...]
    output: str
    widest: float  # elements of the largest activation for each element of H and W


def unet_network(architecture: Architecture) -> Network:
    """Describe a whole UNet: activations x, timesteps, context, and y where it takes it."""
    a = architecture
    describer = _Describer({name: p.shape for name, p in UNet(a).named_parameters()})
    emb = describer.embedding(a)
    h, skips = "x", []
    for i, block in enumerate(a.input_blocks):
        h = describer.block(f"input_blocks.{i}", block, h, emb)
        skips.append(h)
    h = describer.block("middle_block", a.middle_block, h, emb)
    for i, block in enumerate(a.output_blocks):
        h = describer.operation("join", h, skips.pop())
        h = describer.block(f"output_blocks.{i}", block, h, emb)
    h = describer.layer("out.", a.output, h)
    activations: dict[str, tuple[int | str, ...]] = {
        "x": ("B", a.in_channels, "H", "W"),
        "timesteps": ("B",),
        "context": ("B", "L", a.context_dim),
    }
    if a.adm_channels is not None:
        activations["y"] = ("B", a.adm_channels)
    return describer.network(activations, h, _widest(a))


def unit_network(unit: specs.Spec) -> Network:
    """Describe the unit of a layer: activations `h`, `skip`, and what `prepare` returns, `side.0`.

    See `compile/units.py: UnitFn`.
    """
    between = ("L",) if isinstance(unit, specs.SpatialTransformer) else ()
    side = {f"side.{i}": ("B", *between, width) for i, width in enumerate(side_widths(unit))}
    images = dict(zip(("h", "skip"), image_widths(unit, torch.device("cuda")), strict=False))
    describer = _Describer({name: p.shape for name, p in weights_of(build_layer(unit)).items()})
    h = describer.operation("join", *images) if len(images) > 1 else "h"
    out = describer.layer("", unit, h, *side)
    shapes = {name: ("B", width, "H", "W") for name, width in images.items()}
    return describer.network({**shapes, **side}, out, widest(unit))


def _widest(a: Architecture) -> float:
    """Return the channels of the widest activation, as if it had the size of the latent."""
    found, level = 0.0, 0
    for block in (*a.input_blocks, a.middle_block, *a.output_blocks):
        for spec in block:
            level += isinstance(spec, specs.Downsample) - isinstance(spec, specs.Upsample)
            if isinstance(spec, (specs.ResBlock, specs.SpatialTransformer)):
                found = max(found, widest(spec) / 4**level)
    return found


class _Describer:
    """Collects operations on weights of these names and shapes.

    Every method returns the name of an output, and takes names: of outputs, activations, or, as
    `name`, of a layer. The same operation on the same inputs is collected once.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]):
        self._weights = {name: tuple(shape) for name, shape in shapes.items()}
        self._operations: list[Operation] = []
        self._known: dict[object, str] = {}

    def network(
        self, activations: Mapping[str, tuple[int | str, ...]], output: str, widest: float
    ) -> Network:
        return Network(activations, self._weights, tuple(self._operations), output, widest)

    def operation(self, kind: str, *inputs: str, **settings: float) -> str:
        known = kind, inputs, tuple(settings.items())
        if known not in self._known:
            output = f"{kind}.{len(self._operations)}"
            self._operations.append(Operation(kind, inputs, output, settings))
            self._known[known] = output
        return self._known[known]

    def weighted(self, kind: str, x: str, name: str, **settings: float) -> str:
        """An operation with the weight and, where it has one, the bias of the layer `name`."""
        weights = (f"{name}.{own}" for own in ("weight", "bias"))
        return self.operation(kind, x, *(w for w in weights if w in self._weights), **settings)

    def group_norm(self, x: str, name: str, eps: float = 1e-5) -> str:
        return self.weighted("group_norm", x, name, eps=eps, groups=specs.NORM_GROUPS)

    def mlp(self, x: str, name: str) -> str:
        """Two linear layers, `NAME.0` and `NAME.2`, and a SiLU between them."""
        hidden = self.operation("silu", self.weighted("linear", x, f"{name}.0"))
        return self.weighted("linear", hidden, f"{name}.2")

    def embedding(self, a: Architecture) -> str:
        t = self.operation("sinusoids", "timesteps", channels=a.model_channels)
        emb = self.mlp(t, "time_embed")
        if a.adm_channels is not None:
            emb = self.operation("add", emb, self.mlp("y", "label_emb.0"))
        return emb

    def block(self, name: str, block: specs.Block, h: str, emb: str) -> str:
        for i, spec in enumerate(block):
            prefix = f"{name}.{i}."
            h = self.layer(prefix, spec, h, *self.prepared(prefix, spec, emb))
        return h

    def prepared(self, prefix: str, spec: specs.Spec, emb: str) -> list[str]:
        """Describe what a layer computes of `emb` or of the context alone."""
        match spec:
            case specs.ResBlock():
                active = self.operation("silu", emb)
                return [self.weighted("linear", active, f"{prefix}emb_layers.1")]
            case specs.SpatialTransformer():
                names = (f"{prefix}transformer_blocks.{i}.attn2" for i in range(spec.depth))
                return [each for name in names for each in self.keys_and_values("context", name)]
        return []

    def layer(self, prefix: str, spec: specs.Spec, h: str, *side: str) -> str:
        """Describe one layer from `h` and what is prepared; its weights begin with `prefix`."""
        match spec:
            case specs.Conv():
                return self.weighted("convolution", h, prefix[:-1], stride=1)
            case specs.Downsample():
                return self.weighted("convolution", h, f"{prefix}op", stride=2)
            case specs.Upsample():
                h = self.operation("upsample", h)
                return self.weighted("convolution", h, f"{prefix}conv", stride=1)
            case specs.ResBlock():
                return self.residual(prefix, spec, h, *side)
            case specs.SpatialTransformer():
                return self.transformer(prefix, spec, h, *side)
            case specs.Output():
                h = self.operation("silu", self.group_norm(h, f"{prefix}0"))
                return self.weighted("convolution", h, f"{prefix}2", stride=1)
        raise ValueError(f"{spec} is no layer")

    def residual(self, prefix: str, spec: specs.ResBlock, x: str, projected: str) -> str:
        h = self.operation("silu", self.group_norm(x, f"{prefix}in_layers.0"))
        h = self.weighted("convolution", h, f"{prefix}in_layers.2", stride=1)
        h = self.operation("add_per_channel", h, projected)
        h = self.operation("silu", self.group_norm(h, f"{prefix}out_layers.0"))
        h = self.weighted("convolution", h, f"{prefix}out_layers.3", stride=1)
        if spec.in_channels != spec.out_channels:
            x = self.weighted("convolution", x, f"{prefix}skip_connection", stride=1)
        return self.operation("add", x, h)

    def transformer(
        self, prefix: str, spec: specs.SpatialTransformer, x: str, *keys_and_values: str
    ) -> str:
        t = self.operation("tokens", self.group_norm(x, f"{prefix}norm", eps=1e-6))
        t = self.weighted("linear", t, f"{prefix}proj_in")
        for i in range(spec.depth):
            name = f"{prefix}transformer_blocks.{i}"
            n = self.weighted("layer_norm", t, f"{name}.norm1", eps=1e-5)
            own = self.keys_and_values(n, f"{name}.attn1")
            t = self.operation("add", self.attention(n, own, f"{name}.attn1", spec.heads), t)
            n = self.weighted("layer_norm", t, f"{name}.norm2", eps=1e-5)
            given = keys_and_values[2 * i : 2 * i + 2]
            t = self.operation("add", self.attention(n, given, f"{name}.attn2", spec.heads), t)
            n = self.weighted("layer_norm", t, f"{name}.norm3", eps=1e-5)
            n = self.operation("geglu", self.weighted("linear", n, f"{name}.ff.net.0.proj"))
            t = self.operation("add", self.weighted("linear", n, f"{name}.ff.net.2"), t)
        t = self.weighted("linear", t, f"{prefix}proj_out")
        return self.operation("add", self.operation("pixels", t, x), x)

    def keys_and_values(self, context: str, name: str) -> Sequence[str]:
        return [self.weighted("linear", context, f"{name}.to_{each}") for each in "kv"]

    def attention(self, x: str, keys_and_values: Sequence[str], name: str, heads: int) -> str:
        q = self.weighted("linear", x, f"{name}.to_q")
        out = self.operation("attention", q, *keys_and_values, heads=heads)
        return self.weighted("linear", out, f"{name}.to_out.0")
