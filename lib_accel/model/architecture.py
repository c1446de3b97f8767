"""What a UNet is, apart from its weights.

An `Architecture` is read off parameter names and shapes in the LDM layout (CompVis/Stability-AI `openaimodel.UNetModel`,
which SD1.x, SD2.x, SDXL and their inpainting, edit and distilled variants all use) by one set of rules, never by a list of
known models. It is what compiled code depends on; two checkpoints with equal architectures share that code.

What shapes cannot tell is the number of attention heads. The rule: a transformer whose `proj_in` is a 1x1 convolution
(SD1.x) has 8 heads; one whose `proj_in` is a linear layer (SD2.x, SDXL) has 64 channels a head. A live module's `heads`
attributes take precedence.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedArchitecture

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]

TRANSFORMERS = {
    "joint_blocks.": "a diffusion transformer (SD3)",
    "double_blocks.": "a diffusion transformer (Flux)",
}  # by their names
NORM_GROUPS = 32  # every GroupNorm of the family; the LDM code has no option for it
SD1_HEADS = 8
CHANNELS_PER_HEAD = 64


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
    """Residual block conditioned on `emb: [B, emb_channels]`."""

    in_channels: int
    out_channels: int
    emb_channels: int


@dataclass(frozen=True)
class SpatialTransformer:
    """`depth` transformer blocks over the pixels, attending to `context: [B, L, context_dim]`."""

    channels: int
    context_dim: int
    heads: int
    depth: int
    linear: bool  # proj_in and proj_out are linear layers, not 1x1 convolutions


@dataclass(frozen=True)
class Output:
    """GroupNorm, SiLU and a 3x3 convolution."""

    in_channels: int
    out_channels: int


Layer = Conv | Downsample | Upsample | ResBlock | SpatialTransformer | Output
Block = tuple[Layer, ...]
_LAYERS: dict[str, type] = {
    c.__name__: c for c in (Conv, Downsample, Upsample, ResBlock, SpatialTransformer, Output)
}


@dataclass(frozen=True)
class Architecture:
    """A UNet's structure. Blocks are named as in the checkpoint: `input_blocks.3`, `middle_block`, `out`."""

    in_channels: int
    out_channels: int
    model_channels: int
    emb_channels: int
    adm_channels: int | None  # width of `y` (SDXL, unCLIP); None where the UNet takes none
    context_dim: int
    input_blocks: tuple[Block, ...]
    middle_block: Block
    output_blocks: tuple[Block, ...]

    @classmethod
    def from_shapes(
        cls, shapes: Mapping[str, Sequence[int]], heads: Mapping[str, int] | None = None
    ) -> Architecture:
        """Describe the UNet whose parameters have these names and shapes (no prefix: `input_blocks.0.0.weight`).

        `heads` maps transformer names (`input_blocks.1.1`) to their number of attention heads where it is known.
        Raises UnsupportedArchitecture naming the first key or shape that does not fit.
        """
        return _Reader(shapes, heads or {}).read()

    @classmethod
    def from_module(cls, module: torch.nn.Module) -> Architecture:
        """Describe a live `ldm` or `sgm` UNetModel, taking the number of heads from its attention layers."""
        return cls.from_shapes(_shapes(module), _heads(module))

    def layers(self) -> Iterator[tuple[str, Layer]]:
        """Every layer as (name in the checkpoint, spec), in the order a forward pass runs them."""
        blocks = [(f"input_blocks.{i}", b) for i, b in enumerate(self.input_blocks)]
        blocks.append(("middle_block", self.middle_block))
        blocks += [(f"output_blocks.{i}", b) for i, b in enumerate(self.output_blocks)]
        for name, block in blocks:
            for i, layer in enumerate(block):
                yield f"{name}.{i}", layer
        yield "out", self.output

    @property
    def output(self) -> Output:
        return Output(self.model_channels, self.out_channels)

    @property
    def name(self) -> str:
        """What people call it; for display only, nothing is decided by it."""
        widths = (self.model_channels, self.context_dim, self.adm_channels)
        family = {
            (320, 768, None): "SD1",
            (320, 1024, None): "SD2",
            (320, 2048, 2816): "SDXL",
            (384, 1280, 2560): "SDXL refiner",
        }.get(widths)
        if family is None:
            family = f"UNet {self.model_channels}/{self.context_dim}"
        deepest = max(
            (
                layer.depth
                for b in self.input_blocks
                for layer in b
                if isinstance(layer, SpatialTransformer)
            ),
            default=0,
        )
        if family == "SDXL" and deepest != 10:
            family = "SDXL (reduced)"
        variant = {4: "", 8: " edit", 9: " inpainting"}.get(
            self.in_channels, f" {self.in_channels} channels"
        )
        return family + variant


def _shapes(module: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def _heads(module: torch.nn.Module) -> dict[str, int]:
    """By transformer name, as the attention layers say."""
    heads: dict[str, int] = {}
    for name, child in module.named_modules():
        at = re.fullmatch(r"(.+)\.transformer_blocks\.\d+\.attn[12]", name)
        count = getattr(child, "heads", None)
        if at and count is not None and heads.setdefault(at[1], int(count)) != int(count):
            raise UnsupportedArchitecture(
                f"{name} has {count} attention heads, another layer of {at[1]} has {heads[at[1]]}; expected one number in a transformer"
            )
    return heads


def layers_in(module: torch.nn.Module) -> dict[str, Layer]:
    """The residual blocks and transformers anywhere in a network, by name; those that differ from a UNet's are left out.

    Raises UnsupportedArchitecture when the attention layers of one transformer disagree on their heads.
    """
    shapes, heads = _shapes(module), _heads(module)
    found: dict[str, Layer] = {}
    for key in shapes:
        at = re.fullmatch(r"(.+)\.(in_layers\.0|transformer_blocks\.0\.norm1)\.weight", key)
        if not at:
            continue
        own = {k: shape for k, shape in shapes.items() if k.startswith(f"{at[1]}.")}
        reader = _Reader(own, heads)
        try:
            if at[2].startswith("in_layers"):
                reader.emb_channels = reader.any_shape(f"{at[1]}.emb_layers.1.weight", 2)[1]
            spec = reader.layer(at[1], shapes[key][0])
        except UnsupportedArchitecture:
            continue
        if not reader.left:
            found[at[1]] = spec
    return found


def layer_to_dict(layer: Layer) -> dict[str, Any]:
    return {"layer": type(layer).__name__, **dataclasses.asdict(layer)}


def layer_from_dict(data: Mapping[str, Any]) -> Layer:
    return _LAYERS[data["layer"]](**{k: v for k, v in data.items() if k != "layer"})


def kind_of(names: Collection[str], kinds: Mapping[str, str]) -> str | None:
    """What `kinds` (by how names start) calls a model with these names."""
    return next(
        (what for start, what in kinds.items() if any(name.startswith(start) for name in names)),
        None,
    )


class _Reader:
    """Consumes parameter names; whatever is left over, missing or of another shape refuses the architecture."""

    def __init__(self, shapes: Mapping[str, Sequence[int]], heads: Mapping[str, int]):
        self.shapes: dict[str, Shape] = {k: tuple(int(n) for n in s) for k, s in shapes.items()}
        self.heads = heads
        self.left = set(self.shapes)
        self.emb_channels = 0
        self.context_dim: int | None = None

    def read(self) -> Architecture:
        model = self.any_shape("time_embed.0.weight", 2)[1]
        self.emb_channels = self.linear("time_embed.0", model)
        self.linear("time_embed.2", self.emb_channels, self.emb_channels)
        adm = None
        if "label_emb.0.0.weight" in self.shapes:
            adm = self.any_shape("label_emb.0.0.weight", 2)[1]
            self.linear("label_emb.0.0", adm, self.emb_channels)
            self.linear("label_emb.0.2", self.emb_channels, self.emb_channels)
        in_channels = self.any_shape("input_blocks.0.0.weight", 4)[1]

        channels, skips, inputs = in_channels, [], []
        for i in range(self.count("input_blocks")):
            block, channels = self.block(f"input_blocks.{i}", channels)
            inputs.append(block)
            skips.append(channels)
        middle, channels = self.block("middle_block", channels)
        outputs = []
        for i in range(self.count("output_blocks")):
            if not skips:
                raise UnsupportedArchitecture(
                    f"output_blocks.{i} has no input block to take a skip tensor from; expected as many output as input blocks"
                )
            block, channels = self.block(f"output_blocks.{i}", channels + skips.pop())
            outputs.append(block)
        if skips:
            raise UnsupportedArchitecture(
                f"{len(inputs)} input blocks but {len(outputs)} output blocks; expected one output block per input block"
            )

        out_channels = self.any_shape("out.2.weight", 4)[0]
        self.norm("out.0", channels)
        self.conv("out.2", channels, out_channels)
        if channels != model:
            raise UnsupportedArchitecture(
                f"out.2.weight takes {channels} channels; expected the model's {model}"
            )
        if self.left:
            raise UnsupportedArchitecture(
                f"the parameter {min(self.left)} {list(self.shapes[min(self.left)])} has no place in this family of UNets"
            )
        self.check_levels(inputs, outputs)
        if self.context_dim is None:
            raise UnsupportedArchitecture(
                "the UNet has no cross-attention (no transformer_blocks.*.attn2.to_k); expected at least one"
            )
        return Architecture(
            in_channels,
            out_channels,
            model,
            self.emb_channels,
            adm,
            self.context_dim,
            tuple(inputs),
            middle,
            tuple(outputs),
        )

    def check_levels(self, inputs: list[Block], outputs: list[Block]) -> None:
        """Every step down is undone by a step up; a UNet that resamples inside residual blocks shows here."""
        down = sum(isinstance(layer, Downsample) for b in inputs for layer in b)
        up = sum(isinstance(layer, Upsample) for b in outputs for layer in b)
        if down != up or not down:
            raise UnsupportedArchitecture(
                f"{down} downsampling and {up} upsampling layers; expected equal numbers, at least one"
            )

    def count(self, group: str) -> int:
        found = {int(m[1]) for k in self.shapes if (m := re.match(rf"{group}\.(\d+)\.", k))}
        if found != set(range(len(found))) or not found:
            raise UnsupportedArchitecture(
                f"{group} has the numbers {sorted(found)}; expected 0, 1, 2, ... without gaps"
            )
        return len(found)

    def block(self, name: str, channels: int) -> tuple[Block, int]:
        layers: list[Layer] = []
        for i in range(self.count(name)):
            layer = self.layer(f"{name}.{i}", channels)
            channels = (
                layer.channels if isinstance(layer, SpatialTransformer) else layer.out_channels
            )
            layers.append(layer)
        return tuple(layers), channels

    def layer(self, name: str, channels: int) -> Layer:
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
            f"{some} belongs to no known layer; "
            f"expected a residual block, a spatial transformer, a down- or upsampling or a convolution at {name}"
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
        linear = len(self.any_shape(f"{name}.proj_in.weight")) == 2
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
        assert self.context_dim is not None
        return SpatialTransformer(channels, self.context_dim, heads, depth, linear)

    def transformer_block(self, name: str, channels: int) -> None:
        context = self.any_shape(f"{name}.attn2.to_k.weight", 2)[1]
        if self.context_dim not in (None, context):
            raise UnsupportedArchitecture(
                f"{name}.attn2.to_k.weight takes a context of {context}; other layers take {self.context_dim}"
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

    def norm(self, name: str, channels: int) -> None:
        if channels % NORM_GROUPS:
            raise UnsupportedArchitecture(
                f"{name} normalises {channels} channels, which {NORM_GROUPS} groups do not divide"
            )
        self.take(f"{name}.weight", (channels,))
        self.take(f"{name}.bias", (channels,))

    def linear(self, name: str, inputs: int, outputs: int | None = None, bias: bool = True) -> int:
        outputs = outputs or self.any_shape(f"{name}.weight", 2)[0]
        self.take(f"{name}.weight", (outputs, inputs))
        if (
            bias or f"{name}.bias" in self.shapes
        ):  # a LoRA may have given it one: `UNet.extra_biases`
            self.take(f"{name}.bias", (outputs,))
        return outputs

    def conv(self, name: str, inputs: int, outputs: int | None = None, kernel: int = 3) -> int:
        outputs = outputs or self.any_shape(f"{name}.weight", 4)[0]
        self.take(f"{name}.weight", (outputs, inputs, kernel, kernel))
        self.take(f"{name}.bias", (outputs,))
        return outputs

    def any_shape(self, key: str, ndim: int | None = None) -> Shape:
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
        if self.any_shape(key) != expected:
            raise UnsupportedArchitecture(
                f"{key} has the shape {list(self.shapes[key])}; expected {list(expected)}"
            )
        self.left.discard(key)
