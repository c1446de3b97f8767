"""The well-known UNets as architectures, at their real size or any other width.

They are for benchmarks, demonstrations, tests and the doctor, which need a UNet and have no
checkpoint. A user's model is never described by a preset, but from its own shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import UnsupportedArchitecture
from .architecture import Architecture
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


@dataclass(frozen=True)
class Structure:
    """The numbers that a regular UNet is built from.

    A level is a resolution; each level has half the width and height of the one before. It has
    `channel_mult * model_channels` channels, `res_blocks` residual blocks on the way down and one
    more on the way up, and after each of them a transformer of the level's depth (0: none).
    `linear`: attention heads have 64 channels each (SD2.x, SDXL); otherwise there are 8 (SD1.x).
    Raises UnsupportedArchitecture if the numbers do not fit together.
    """

    model_channels: int
    channel_mult: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    context_dim: int
    linear: bool
    adm_channels: int | None = None
    in_channels: int = 4
    out_channels: int = 4
    res_blocks: int = 2

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.channel_mult):
            raise UnsupportedArchitecture(
                f"{len(self.depths)} depths for {len(self.channel_mult)} levels; "
                f"expected one for each"
            )
        for mult, depth in zip(self.channel_mult, self.depths, strict=True):
            divisor = CHANNELS_PER_HEAD if self.linear and depth else NORM_GROUPS
            if self.model_channels < 1 or self.model_channels * mult % divisor:
                raise UnsupportedArchitecture(
                    f"{self.model_channels} model channels give {self.model_channels * mult} "
                    f"at one level; expected a multiple of {divisor}. "
                    f"Use a multiple of {CHANNELS_PER_HEAD}"
                )

    def build(self) -> Architecture:
        """Return the architecture."""
        width = self.model_channels
        inputs: list[Block] = [(Conv(self.in_channels, width),)]
        skips, channels, last = [width], width, len(self.depths) - 1
        for level, mult in enumerate(self.channel_mult):
            for _ in range(self.res_blocks):
                inputs.append(tuple(self.residual(channels, mult * width, self.depths[level])))
                channels = mult * width
                skips.append(channels)
            if level < last:
                inputs.append((Downsample(channels, channels),))
                skips.append(channels)
        middle = (
            *self.residual(channels, channels, self.middle_depth),
            ResBlock(channels, channels, 4 * width),
        )
        outputs: list[Block] = []
        for level in range(last, -1, -1):
            for i in range(self.res_blocks + 1):
                skip = skips.pop()
                outs, depth = self.channel_mult[level] * width, self.depths[level]
                layers = self.residual(channels + skip, outs, depth, skip)
                channels = self.channel_mult[level] * width
                if level and i == self.res_blocks:
                    layers.append(Upsample(channels, channels))
                outputs.append(tuple(layers))
        return Architecture(
            self.in_channels,
            self.out_channels,
            width,
            4 * width,
            self.adm_channels,
            self.context_dim,
            tuple(inputs),
            middle,
            tuple(outputs),
        )

    def residual(self, inputs: int, outputs: int, depth: int, skip: int = 0) -> list[Spec]:
        """Return a residual block and, unless `depth` is 0, the transformer after it."""
        layers: list[Spec] = [ResBlock(inputs, outputs, 4 * self.model_channels, skip)]
        if depth:
            heads = outputs // CHANNELS_PER_HEAD if self.linear else SD1_HEADS
            layers.append(SpatialTransformer(outputs, self.context_dim, heads, depth, self.linear))
        return layers


def sd1(model_channels: int = 320, in_channels: int = 4, context_dim: int = 768) -> Architecture:
    """Return Stable Diffusion 1.x; 9 input channels for inpainting, 8 for InstructPix2Pix."""
    return Structure(
        model_channels,
        (1, 2, 4, 4),
        (1, 1, 1, 0),
        1,
        context_dim,
        linear=False,
        in_channels=in_channels,
    ).build()


def sd2(model_channels: int = 320, in_channels: int = 4, context_dim: int = 1024) -> Architecture:
    """Return Stable Diffusion 2.x; `model_channels` must be a multiple of 64."""
    return Structure(
        model_channels,
        (1, 2, 4, 4),
        (1, 1, 1, 0),
        1,
        context_dim,
        linear=True,
        in_channels=in_channels,
    ).build()


def sdxl(
    model_channels: int = 320,
    in_channels: int = 4,
    context_dim: int = 2048,
    adm_channels: int = 2816,
) -> Architecture:
    """Return Stable Diffusion XL base."""
    return Structure(
        model_channels,
        (1, 2, 4),
        (0, 2, 10),
        10,
        context_dim,
        linear=True,
        adm_channels=adm_channels,
        in_channels=in_channels,
    ).build()


def sdxl_refiner(
    model_channels: int = 384,
    in_channels: int = 4,
    context_dim: int = 1280,
    adm_channels: int = 2560,
) -> Architecture:
    """Return the refiner of Stable Diffusion XL."""
    return Structure(
        model_channels,
        (1, 2, 4, 4),
        (0, 4, 4, 0),
        4,
        context_dim,
        linear=True,
        adm_channels=adm_channels,
        in_channels=in_channels,
    ).build()


PRESETS: dict[str, Callable[..., Architecture]] = {
    "sd1": sd1,
    "sd2": sd2,
    "sdxl": sdxl,
    "sdxl-refiner": sdxl_refiner,
}
