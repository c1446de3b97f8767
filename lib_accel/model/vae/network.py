"""One half of a VAE, the decoder or the encoder: its structure, and a clean network of its layers.

Each layer takes what the one before puts out, so the structure of a half is a list of layers. The
VAEs of SD1, SD2 and SDXL have the same one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import BadWeights, UnsupportedArchitecture
from ..layers import LayerFn, build_layer
from ..parts.modules import empty_parameter
from ..specs import Conv, Spec, Upsample, VaeAttention, VaeBlock, VaeDownsample, VaeOutput

OUTPUT = ""
"""The name of the last layer: its parameters, `norm_out` and `conv_out`, are the network's own."""

DECODER, ENCODER = "decoder", "encoder"


@dataclass(frozen=True)
class Half:
    """The layers of a decoder or an encoder by their names in the checkpoint, in their order."""

    kind: str  # DECODER or ENCODER
    layers: tuple[tuple[str, Spec], ...]

    @classmethod
    def from_module(cls, module: nn.Module) -> Half:
        """Describe a live `Decoder` or `Encoder` by the names and shapes of its parameters.

        Raises UnsupportedArchitecture naming the first parameter that does not fit.
        """
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        return cls.from_shapes(shapes)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> Half:
        """Describe the half whose parameters have these names and shapes. Raises as above."""
        kind = DECODER if any(name.startswith("up.") for name in shapes) else ENCODER
        other = f"the {kind} of this VAE is another one than Stable Diffusion's"
        try:
            half = cls(kind, tuple(_read(kind, shapes)))
        except (KeyError, IndexError, ValueError) as error:
            raise UnsupportedArchitecture(f"{other}: {error.args[0]} is missing") from None
        expected = half.shapes()
        for name in sorted(expected.keys() | shapes.keys()):
            ours, theirs = expected.get(name), shapes.get(name)
            if ours is None or theirs is None or tuple(theirs) != ours:
                raise UnsupportedArchitecture(f"{other}: {_difference(name, theirs, ours)}")
        return half

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name."""
        named = Network(self).named_parameters()
        return {name: tuple(p.shape) for name, p in named}

    @classmethod
    def preset(cls, kind: str, channels: int = 128) -> Half:
        """Return the half of the VAE of SD1, SD2 and SDXL, or a narrower one, for benches."""
        levels, z = [channels * mult for mult in (1, 2, 4, 4)], 4
        group, count = ("up", 3) if kind == DECODER else ("down", 2)
        blocks = {
            f"{group}.{level}.block.{i}.conv1.weight": (width,)
            for level, width in enumerate(levels)
            for i in range(count)
        }
        first, last = (levels[3], levels[0]) if kind == DECODER else (levels[0], levels[3])
        shapes: dict[str, tuple[int, ...]] = {
            "conv_in.weight": (first, z if kind == DECODER else 3, 3, 3),
            "conv_out.weight": (3 if kind == DECODER else 2 * z, last, 3, 3),
            **blocks,
        }
        return cls(kind, tuple(_read(kind, shapes)))

    @property
    def name(self) -> str:
        """What to call it to users."""
        return f"VAE {self.kind}"


class Network:
    """A half of a VAE without weights of its own, that computes with those of a donor.

    See `UNet.adopt`; `layers` are its own layers by name.
    """

    def __init__(self, half: Half):
        self.half = half
        self.compute_dtype: torch.dtype | None = None
        self.extra_biases: set[str] = set()
        self._modules = {name: build_layer(spec) for name, spec in half.layers}
        self.layers: Mapping[str, LayerFn] = self._modules
        self._homes = {
            f"{name}.{own}".lstrip("."): (module.get_submodule(own.rpartition(".")[0]), own)
            for name, module in self._modules.items()
            for own, _ in module.named_parameters()
        }
        self._shapes = {name: p.shape for name, p in self.named_parameters()}

    def modules(self) -> list[nn.Module]:
        """Return the layers, in their order."""
        return list(self._modules.values())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters by their names in the checkpoint."""
        for name, (home, own) in self._homes.items():
            yield name, getattr(home, own.rpartition(".")[2])

    def adopt(self, parameters: Mapping[str, nn.Parameter]) -> Network:
        """Make these Parameter objects the network's own, without a copy, and return the network.

        Raises BadWeights where a name is missing or unknown, or a shape differs.
        """
        for name in self._shapes.keys() | parameters.keys():
            ours, theirs = self._shapes.get(name), parameters.get(name)
            if ours is None or theirs is None or theirs.shape != ours:
                raise BadWeights(_difference(name, None if theirs is None else theirs.shape, ours))
        self._set(parameters)
        return self

    def release(self) -> None:
        """Hold no parameter of anybody."""
        self._set({name: empty_parameter(*shape) for name, shape in self._shapes.items()})

    def _set(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for name, (home, own) in self._homes.items():
            setattr(home, own.rpartition(".")[2], parameters[name])

    def run(self, x: Tensor, layers: Mapping[str, LayerFn] | None = None) -> Tensor:
        """Compute `x: [B, C, H, W]`, by `layers` or the network's own; the result has x's dtype.

        A decoder returns `[B, 3, 8H, 8W]` for a latent, an encoder `[B, 8, H/8, W/8]`.
        """
        layers = self.layers if layers is None else layers
        weight = next(p for _, p in self.named_parameters())
        channels_last = x.device.type == "cpu" or weight.is_contiguous(
            memory_format=torch.channels_last
        )
        layout = torch.channels_last if channels_last else torch.contiguous_format
        h = x.to(self.compute_dtype or weight.dtype, memory_format=layout)
        for name, _ in self.half.layers:
            h = layers[name](h, h, h)  # it takes neither an embedding nor a context
        return h.to(x.dtype)


def _difference(name: str, theirs: Sequence[int] | None, ours: Sequence[int] | None) -> str:
    got, expected = (None if shape is None else list(shape) for shape in (theirs, ours))
    return f"{name}: got the shape {got}, expected the shape {expected}"


def _read(kind: str, shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Spec]]:
    """Yield the layers that these parameters seem to be of. Raises KeyError."""
    channels, inputs = shapes["conv_in.weight"][:2]
    yield "conv_in", Conv(inputs, channels)
    levels = range(_count(shapes, r"(?:up|down)\.(\d+)\."))
    if kind == DECODER:
        yield from _middle(channels)
        for level in reversed(levels):
            for each in _blocks(shapes, f"up.{level}", channels):
                yield each
                channels = each[1].out_channels
            if level:
                yield f"up.{level}.upsample", Upsample(channels, channels)
    else:
        for level in levels:
            for each in _blocks(shapes, f"down.{level}", channels):
                yield each
                channels = each[1].out_channels
            if level != levels[-1]:
                yield f"down.{level}.downsample", VaeDownsample(channels, channels)
        yield from _middle(channels)
    yield OUTPUT, VaeOutput(channels, shapes["conv_out.weight"][0])


def _middle(channels: int) -> list[tuple[str, Spec]]:
    block = VaeBlock(channels, channels)
    attention = VaeAttention(channels)
    return [("mid.block_1", block), ("mid.attn_1", attention), ("mid.block_2", block)]


def _blocks(
    shapes: Mapping[str, Sequence[int]], level: str, channels: int
) -> Iterator[tuple[str, VaeBlock]]:
    for i in range(_count(shapes, rf"{re.escape(level)}\.block\.(\d+)\.")):
        name = f"{level}.block.{i}"
        block = VaeBlock(channels, shapes[f"{name}.conv1.weight"][0])
        yield name, block
        channels = block.out_channels


def _count(shapes: Mapping[str, Sequence[int]], pattern: str) -> int:
    """Return how many numbers there are, from 0 on, where names have the pattern's group."""
    found = {int(at[1]) for at in (re.match(pattern, name) for name in shapes) if at}
    return len(found)
