"""The structure of a whole UNet, apart from its weights.

Compiled code depends on the architecture alone: checkpoints with equal architectures share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedArchitecture
from .reading import Reader, heads_of, shapes_of
from .specs import (
    Block,
    Downsample,
    Embedding,
    Output,
    ResBlock,
    SpatialTransformer,
    Spec,
    Upsample,
    spec_from_dict,
    spec_to_dict,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Architecture:
    """A UNet's structure: its widths, and the specs of its layers block by block.

    Blocks and layers are named as in the checkpoint: the layer `input_blocks.3.0` is the first of
    the block `input_blocks.3`.
    """

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
        """Describe the UNet whose parameters have these names and shapes.

        `shapes`: by name in the LDM layout, without a prefix (`input_blocks.0.0.weight`).
        `heads`: the number of attention heads by transformer name (`input_blocks.1.1`), where it is
        known; the rule of `reading.py` gives the others.
        Raises UnsupportedArchitecture naming the first parameter or shape that does not fit.
        """
        reader = Reader(shapes, heads or {})
        model_channels = reader.shape("time_embed.0.weight", 2)[1]
        emb_channels = reader.emb_channels = reader.linear("time_embed.0", model_channels)
        reader.linear("time_embed.2", emb_channels, emb_channels)
        adm_channels = None
        if "label_emb.0.0.weight" in reader.shapes:
            adm_channels = reader.shape("label_emb.0.0.weight", 2)[1]
            reader.linear("label_emb.0.0", adm_channels, emb_channels)
            reader.linear("label_emb.0.2", emb_channels, emb_channels)

        in_channels = reader.shape("input_blocks.0.0.weight", 4)[1]
        input_blocks, skips = _read_input_blocks(reader, in_channels)
        middle_block, channels = reader.block("middle_block", skips[-1])
        output_blocks, channels = _read_output_blocks(reader, channels, skips)

        out_channels = reader.shape("out.2.weight", 4)[0]
        reader.norm("out.0", channels)
        reader.conv("out.2", channels, out_channels)
        if channels != model_channels:
            raise UnsupportedArchitecture(
                f"out.2.weight takes {channels} channels; expected the model's {model_channels}"
            )
        reader.refuse_leftovers()
        _check_levels(input_blocks, output_blocks)
        return cls(
            in_channels,
            out_channels,
            model_channels,
            emb_channels,
            adm_channels,
            reader.context_channels(),
            input_blocks,
            middle_block,
            output_blocks,
        )

    @classmethod
    def from_module(cls, module: torch.nn.Module) -> Architecture:
        """Describe a live UNet, taking the number of heads from its attention layers.

        `module`: an `ldm` or `sgm` UNetModel, or any module with its parameter names.
        Raises UnsupportedArchitecture naming the first parameter or number that does not fit.
        """
        return cls.from_shapes(shapes_of(module), heads_of(module))

    def to_dict(self) -> dict[str, Any]:
        """Return the architecture as plain JSON values."""
        blocks = (*self.input_blocks, self.middle_block, *self.output_blocks)
        written = [[spec_to_dict(spec) for spec in block] for block in blocks]
        return {**vars(self), **_split(written, len(self.input_blocks))}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Return the architecture that `to_dict` made `data` of. Raises KeyError or TypeError."""
        blocks = (*data["input_blocks"], data["middle_block"], *data["output_blocks"])
        read = [tuple(spec_from_dict(spec) for spec in block) for block in blocks]
        return cls(**{**data, **_split(read, len(data["input_blocks"]))})

    def layers(self) -> Iterator[tuple[str, Spec]]:
        """Yield every layer's name and spec, in the order of a forward pass."""
        blocks = [(f"input_blocks.{i}", b) for i, b in enumerate(self.input_blocks)]
        blocks.append(("middle_block", self.middle_block))
        blocks += [(f"output_blocks.{i}", b) for i, b in enumerate(self.output_blocks)]
        for name, block in blocks:
            for i, spec in enumerate(block):
                yield f"{name}.{i}", spec
        yield "out", self.output

    @property
    def output(self) -> Output:
        """The spec of the layer `out`."""
        return Output(self.model_channels, self.out_channels)

    @property
    def embedding(self) -> Embedding:
        """The spec of the time embedding and its projections."""
        widths = tuple(spec.out_channels for _, spec in self.layers() if isinstance(spec, ResBlock))
        return Embedding(self.model_channels, self.emb_channels, self.adm_channels, widths)

    @property
    def name(self) -> str:
        """The name of the model family, to show to users; nothing is decided by it."""
        widths = (self.model_channels, self.context_dim, self.adm_channels)
        family = {
            (320, 768, None): "SD1",
            (320, 1024, None): "SD2",
            (320, 2048, 2816): "SDXL",
            (384, 1280, 2560): "SDXL refiner",
        }.get(widths, f"UNet {self.model_channels}/{self.context_dim}")
        specs = (spec for block in self.input_blocks for spec in block)
        depths = [spec.depth for spec in specs if isinstance(spec, SpatialTransformer)]
        if family == "SDXL" and max(depths, default=0) != 10:
            family = "SDXL (reduced)"
        variants = {4: "", 8: " edit", 9: " inpainting"}
        return family + variants.get(self.in_channels, f" {self.in_channels} channels")


def _split(blocks: Sequence[Any], inputs: int) -> dict[str, Any]:
    """Return the blocks by the names of an architecture's fields."""
    return {
        "input_blocks": tuple(blocks[:inputs]),
        "middle_block": blocks[inputs],
        "output_blocks": tuple(blocks[inputs + 1 :]),
    }


def _read_input_blocks(reader: Reader, channels: int) -> tuple[tuple[Block, ...], list[int]]:
    """Return the input blocks and the channels that each of them puts out."""
    blocks, skips = [], []
    for i in range(reader.count("input_blocks")):
        block, channels = reader.block(f"input_blocks.{i}", channels)
        blocks.append(block)
        skips.append(channels)
    return tuple(blocks), skips


def _read_output_blocks(
    reader: Reader, channels: int, skips: list[int]
) -> tuple[tuple[Block, ...], int]:
    """Return the output blocks and the channels that the last of them puts out.

    Each takes what comes from below and the output of an input block, the last one first.
    """
    blocks, left = [], list(skips)
    for i in range(reader.count("output_blocks")):
        if not left:
            raise UnsupportedArchitecture(
                f"output_blocks.{i} has no input block to take a skip tensor from; "
                f"expected as many output as input blocks"
            )
        skip = left.pop()
        (first, *others), channels = reader.block(f"output_blocks.{i}", channels + skip)
        if isinstance(first, ResBlock):
            first = replace(first, skip_channels=skip)
        blocks.append((first, *others))
    if left:
        raise UnsupportedArchitecture(
            f"{len(skips)} input blocks but {len(blocks)} output blocks; "
            f"expected one output block per input block"
        )
    return tuple(blocks), channels


def _check_levels(inputs: tuple[Block, ...], outputs: tuple[Block, ...]) -> None:
    """Refuse a UNet that has not one upsampling layer for each downsampling layer.

    That is how a UNet shows that resamples inside its residual blocks (`resblock_updown`): these
    have the parameters of ordinary residual blocks.
    """
    down = sum(isinstance(spec, Downsample) for block in inputs for spec in block)
    up = sum(isinstance(spec, Upsample) for block in outputs for spec in block)
    if down != up or not down:
        raise UnsupportedArchitecture(
            f"{down} downsampling and {up} upsampling layers; expected equal numbers, at least one"
        )
