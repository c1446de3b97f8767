"""Read the specs of layers off parameter names and shapes in the LDM layout.

The rules are those of `openaimodel.UNetModel` (CompVis, Stability-AI), which SD1.x, SD2.x, SDXL and
their inpainting, edit and distilled variants all use; there is no list of known models.

Shapes do not tell the number of attention heads. The rule: a transformer whose `proj_in` is a 1x1
convolution (SD1.x) has 8 heads; one whose `proj_in` is a linear layer (SD2.x, SDXL) has 64 channels
per head. The `heads` attributes of a live module take precedence.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedArchitecture
from .specs import (
    CHANNELS_PER_HEAD,
    NORM_GROUPS,
    SD1_HEADS,
    Block,
    Conv,
    Downsample,
    ResBlock,
    SpatialTransformer,
    Spec,
    Upsample,
)

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]

_NUMBER = re.compile(r"(0|[1-9][0-9]{0,5})\.")

# What else the parameters of a diffusion model may be, by how their names start.
TRANSFORMERS = {
    "joint_blocks.": "a diffusion transformer (SD3)",
    "double_blocks.": "a diffusion transformer (Flux)",
}


def kind_of(names: Collection[str], kinds: Mapping[str, str]) -> str | None:
    """Return the value of `kinds` whose key one of `names` starts with, or None."""
    return next(
        (what for start, what in kinds.items() if any(name.startswith(start) for name in names)),
        None,
    )


def shapes_of(module: torch.nn.Module) -> dict[str, Shape]:
    """Return the shape of every parameter, by name."""
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def heads_of(module: torch.nn.Module) -> dict[str, int]:
    """Return the number of attention heads of every transformer, by the transformer's name.

    Raises UnsupportedArchitecture when the attention layers of one transformer disagree.
    """
    heads: dict[str, int] = {}
    for name, child in module.named_modules():
        at = re.fullmatch(r"(.+)\.transformer_blocks\.\d+\.attn[12]", name)
        count = getattr(child, "heads", None)
        if at and count is not None and heads.setdefault(at[1], int(count)) != int(count):
            raise UnsupportedArchitecture(
                f"{name} has {count} attention heads, another layer of {at[1]} has "
                f"{heads[at[1]]}; expected one number in a transformer"
            )
    return heads


def layers_in(module: torch.nn.Module) -> dict[str, Spec]:
    """Return the specs of the residual blocks and transformers anywhere in a network, by name.

    Blocks that differ from a UNet's are left out.
    Raises UnsupportedArchitecture when the attention layers of one transformer disagree on heads.
    """
    shapes, heads = shapes_of(module), heads_of(module)
    found: dict[str, Spec] = {}
    for key in shapes:
        at = re.fullmatch(r"(.+)\.(in_layers\.0|transformer_blocks\.0\.norm1)\.weight", key)
        if not at:
            continue
        own = {k: shape for k, shape in shapes.items() if k.startswith(f"{at[1]}.")}
        reader = Reader(own, heads)
        try:
            if at[2].startswith("in_layers"):
                reader.emb_channels = reader.shape(f"{at[1]}.emb_layers.1.weight", 2)[1]
            spec = reader.spec(at[1], shapes[key][0])
            reader.refuse_leftovers()
        except UnsupportedArchitecture:
            continue
        found[at[1]] = spec
    return found


class Reader:
    """Turns parameters into specs and ticks off each parameter it has used.

    Every method raises UnsupportedArchitecture, naming the first parameter that is missing or has
    another shape than expected.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], heads: Mapping[str, int]):
        self.shapes: dict[str, Shape] = {k: tuple(int(n) for n in s) for k, s in shapes.items()}
        self._names = sorted(self.shapes)
        self.heads = heads
        self.left = set(self.shapes)
        self.emb_channels = 0  # to be set before the first residual block is read
        self.context_dim: int | None = None  # set by the first transformer

    def count(self, group: str) -> int:
        """Return how many numbered members (`group.0`, `group.1`, ...) there are."""
        # "/" is the character after "."; going through all names for each group would take too long
        first, end = (bisect.bisect_left(self._names, group + mark) for mark in "./")
        members = (name[len(group) + 1 :] for name in self._names[first:end])
        found = {int(m[1]) for member in members if (m := _NUMBER.match(member))}
        if found != set(range(len(found))) or not found:
            raise UnsupportedArchitecture(
                f"{group} has the numbers {sorted(found)[:50]}; expected 0, 1, 2, ... without gaps"
            )
        return len(found)

    def block(self, name: str, channels: int) -> tuple[Block, int]:
        """Return the specs of a block that takes `channels`, and the channels it puts out."""
        specs: list[Spec] = []
        for i in range(self.count(name)):
            spec: Any = self.spec(f"{name}.{i}", channels)
            channels = spec.channels if isinstance(spec, SpatialTransformer) else spec.out_channels
            specs.append(spec)
        return tuple(specs), channels

    def spec(self, name: str, channels: int) -> Spec:
        """Return the spec of the layer of that name, which takes `channels`."""
        if f"{name}.in_layers.0.weight" in self.shapes:
            return self.resblock(name, channels)
        if f"{name}.proj_in.weight" in self.shapes:
            return self.transformer(name, channels)
        if f"{name}.op.weight" in self.shapes:
            return Downsample(channels, self.conv(f"{name}.op", channels))
        if f"{name}.conv.weight" in self.shapes:
            return Upsample(channels, self.conv(f"{name}.conv", channels))
        if f"{name}.weight" in self.shapes:
            return Conv(channels, self.conv(name, channels))
        some = min(k for k in self.shapes if k.startswith(f"{name}."))
        raise UnsupportedArchitecture(
            f"{some} belongs to no known layer; expected a residual block, a spatial transformer, "
            f"a down- or upsampling or a convolution at {name}"
        )

    def resblock(self, name: str, channels: int) -> ResBlock:
        self.norm(f"{name}.in_layers.0", channels)
        out = self.conv(f"{name}.in_layers.2", channels)
        self.linear(f"{name}.emb_layers.1", self.emb_channels, out)
        self.norm(f"{name}.out_layers.0", out)
        self.conv(f"{name}.out_layers.3", out, out)
        if out != channels:
            self.conv(f"{name}.skip_connection", channels, out, kernel=1)
        return ResBlock(channels, out, self.emb_channels)

    def transformer(self, name: str, channels: int) -> SpatialTransformer:
        self.norm(f"{name}.norm", channels)
        linear = len(self.shape(f"{name}.proj_in.weight")) == 2
        for proj in ("proj_in", "proj_out"):
            if linear:
                self.linear(f"{name}.{proj}", channels, channels)
            else:
                self.conv(f"{name}.{proj}", channels, channels, kernel=1)
        depth = self.count(f"{name}.transformer_blocks")
        for i in range(depth):
            self.transformer_block(f"{name}.transformer_blocks.{i}", channels)
        heads = self.heads.get(name, channels // CHANNELS_PER_HEAD if linear else SD1_HEADS)
        if heads < 1 or channels % heads:
            raise UnsupportedArchitecture(
                f"{name} has {channels} channels, which {heads} attention heads do not divide"
            )
        return SpatialTransformer(channels, self.context_channels(), heads, depth, linear)

    def transformer_block(self, name: str, channels: int) -> None:
        context = self.shape(f"{name}.attn2.to_k.weight", 2)[1]
        if self.context_dim not in (None, context):
            raise UnsupportedArchitecture(
                f"{name}.attn2.to_k.weight takes a context of {context}; "
                f"other layers take {self.context_dim}"
            )
        self.context_dim = context
        for attn, source in (("attn1", channels), ("attn2", context)):
            self.linear(f"{name}.{attn}.to_q", channels, channels, bias=False)
            self.linear(f"{name}.{attn}.to_k", source, channels, bias=False)
            self.linear(f"{name}.{attn}.to_v", source, channels, bias=False)
            self.linear(f"{name}.{attn}.to_out.0", channels, channels)
        self.linear(f"{name}.ff.net.0.proj", channels, 8 * channels)
        self.linear(f"{name}.ff.net.2", 4 * channels, channels)
        for i in (1, 2, 3):
            self.take(f"{name}.norm{i}.weight", (channels,))
            self.take(f"{name}.norm{i}.bias", (channels,))

    # -- parameters

    def norm(self, name: str, channels: int) -> None:
        if channels % NORM_GROUPS:
            raise UnsupportedArchitecture(
                f"{name} normalises {channels} channels, which {NORM_GROUPS} groups do not divide"
            )
        self.take(f"{name}.weight", (channels,))
        self.take(f"{name}.bias", (channels,))

    def linear(self, name: str, inputs: int, outputs: int | None = None, bias: bool = True) -> int:
        outputs = outputs or self.shape(f"{name}.weight", 2)[0]
        self.take(f"{name}.weight", (outputs, inputs))
        # A LoRA may have given a bias to a layer that has none (`UNet.extra_biases`).
        if bias or f"{name}.bias" in self.shapes:
            self.take(f"{name}.bias", (outputs,))
        return outputs

    def conv(self, name: str, inputs: int, outputs: int | None = None, kernel: int = 3) -> int:
        outputs = outputs or self.shape(f"{name}.weight", 4)[0]
        self.take(f"{name}.weight", (outputs, inputs, kernel, kernel))
        self.take(f"{name}.bias", (outputs,))
        return outputs

    def shape(self, key: str, ndim: int | None = None) -> Shape:
        """Return the shape of a parameter that must be there, with `ndim` dimensions if given."""
        shape = self.shapes.get(key)
        if shape is None:
            kind = kind_of(self.shapes, TRANSFORMERS)
            what = f"this is {kind}, not a UNet" if kind else "this is not a UNet in the LDM layout"
            raise UnsupportedArchitecture(f"the parameter {key} is missing; {what}")
        if ndim is not None and len(shape) != ndim:
            raise UnsupportedArchitecture(
                f"{key} has the shape {list(shape)}; expected {ndim} dimensions"
            )
        return shape

    def take(self, key: str, expected: Shape) -> None:
        """Tick off a parameter that must have the expected shape."""
        if self.shape(key) != expected:
            raise UnsupportedArchitecture(
                f"{key} has the shape {list(self.shapes[key])}; expected {list(expected)}"
            )
        self.left.discard(key)

    def refuse_leftovers(self) -> None:
        """Raise UnsupportedArchitecture when some parameter belongs to nothing that was read."""
        if self.left:
            key = min(self.left)
            raise UnsupportedArchitecture(
                f"the parameter {key} {list(self.shapes[key])} has no place in this family of UNets"
            )

    def context_channels(self) -> int:
        """Return the width of the context, which some transformer must have told."""
        if self.context_dim is None:
            raise UnsupportedArchitecture(
                "the UNet has no cross-attention (no transformer_blocks.*.attn2.to_k); "
                "expected at least one"
            )
        return self.context_dim
