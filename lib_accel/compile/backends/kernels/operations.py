"""What lies between the convolutions, products and attentions of a UNet or VAE, in fused kernels.

Images are `[B, C, H, W]` in channels-last memory, tokens are `[B, N, C]` and contiguous; in memory
both are rows of C numbers. A tensor in another layout is copied first. Everything is computed in
float32 and rounded once, to the dtype of the kernels, which activations and weights have too.
NaN and infinity go through as in torch's own operations. No operation has gradients, none waits
for the card, and results are new tensors, made by torch's allocator on the current stream.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from ....errors import BadWeights
from . import geometry
from .embedding import Embedding
from .launching import Operands

_GROUP_NORM = struct.Struct("@8P10ifi0P")
_LAYER_NORM = struct.Struct("@7Pq2if0P")
_GEGLU = struct.Struct("@3Pq2i0P")
_ADD = struct.Struct("@5Pq7i0P")
"""The structs of cuda/*.cu, by their names there."""

READING, WRITING = 2, 8
"""Blocks of GroupNorm for each multiprocessor.

As many as run at once leave few statistics to merge; more, and smaller ones, end at the same time.
"""


class Kernels(Operands):
    """The operations of one device and dtype: float16, bfloat16 or float32.

    Every method raises BadWeights where shapes, dtypes or devices do not fit each other, or where
    a tensor is too large for a launch.
    """

    def group_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        *,
        silu: bool = False,
        skip: Tensor | None = None,
        offset: Tensor | None = None,
        shared: Tensor | None = None,
    ) -> Tensor:
        """Normalise groups of channels (Wu and He 2018), then SiLU with `silu`, in two launches.

        `x: [B, C, H, W]`, `weight, bias: [C]` -> `[B, C, H, W]`, channels-last. With
        `skip: [B, C2, H, W]` it is the norm of `cat([x, skip], 1)`, which is not written down.
        `offset: [B, C]` or `[C]` and `shared: [C]` are added to every pixel of x first: the
        projected time embedding, and the bias of the convolution before it.
        """
        x = self.image(x, "x")
        batch, channels, height, width = x.shape
        more = 0 if skip is None else skip.shape[1]
        if skip is not None:
            skip = self.image(skip, "skip", (batch, more, height, width))
        total = channels + more
        if groups < 1 or total % groups:
            raise BadWeights(f"{total} channels are no multiple of {groups} groups")
        weight = self.tensor(weight, "weight", (total,))
        bias = self.tensor(bias, "bias", (total,))
        offset, stride = self.offset(offset, batch, channels)
        shared, _ = self.offset(shared, 1, channels)
        y = self.new_image(batch, total, height, width)
        if y.numel():
            given = x, skip, offset, shared, weight, bias
            self._normalise(given, y, (channels, more, stride), groups, (eps, silu))
        return y

    def _normalise(
        self,
        given: Sequence[Tensor | None],
        y: Tensor,
        sizes: tuple[int, int, int],
        groups: int,
        options: tuple[float, bool],
    ) -> None:
        """Launch both kernels of `group_norm`, which has checked what it gives."""
        batch, total, height, width = y.shape
        pixels = height * width
        self.check_pixels(pixels)
        wide = self.width(sizes[:2], *given, y)
        cut = geometry.tiles(total, groups, wide, self.size)
        if cut is None:
            wide, cut = 1, geometry.tiles(total, groups, 1, self.size)
        assert cut is not None, "a group can be cut into parts of one channel"
        down = total // (cut.width * cut.tile)
        lanes = cut.width * cut.tile // wide
        cards = self.launcher.multiprocessors
        slabs = geometry.slabs(pixels, down * batch, lanes, cards, READING)
        writing = geometry.slabs(pixels, down * batch, lanes, cards, WRITING)
        entries = batch * groups * cut.parts * slabs.number
        statistics = y.new_empty(2 * entries, dtype=torch.float32)
        arguments = _GROUP_NORM.pack(
            *self.pointers(*given, statistics, y),
            *(pixels, slabs.rows, writing.rows, slabs.number, *sizes, *cut, *options),
        )
        for step, number in ("statistics", slabs.number), ("apply", writing.number):
            grid = number, down, batch
            self.launch(f"group_norm_{step}", wide, grid, geometry.THREADS, arguments)

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        *,
        residual: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Add, and normalise the sum over the channels (Ba et al. 2016), in one launch.

        `x, residual: [B, N, C]`, `offset: [C]` (the bias of the product before it),
        `weight, bias: [C]`. Returns the sum `x + residual + offset` and its norm, `[B, N, C]` each;
        the norm is of the sum before it was rounded. With nothing to add, the sum is x itself.
        """
        x = self.tensor(x, "x")
        channels = x.shape[-1]
        weight = self.tensor(weight, "weight", (channels,))
        bias = self.tensor(bias, "bias", (channels,))
        if residual is not None:
            residual = self.tensor(residual, "residual", x.shape)
        if offset is not None:
            offset = self.tensor(offset, "offset", (channels,))
        y = torch.empty_like(x)
        total = x if residual is None and offset is None else torch.empty_like(x)
        if not x.numel():
            return total, y
        written = None if total is x else total
        aligned = self.width((channels,), x, residual, offset, weight, bias, written, y) > 1
        count = x.numel() // channels
        kernel, blocks, lanes = geometry.tokens(count, channels, aligned)
        arguments = _LAYER_NORM.pack(
            *self.pointers(x, residual, offset, weight, bias, written, y),
            *(count, channels, lanes, eps),
        )
        self.launch(kernel, 0, (blocks, 1, 1), geometry.LAYER_NORM_THREADS, arguments)
        return total, y

    def geglu(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Return values times GELU of gates (Shazeer 2020): `x: [B, N, 2C] -> [B, N, C]`.

        The first C channels are the values. `offset: [2C]`, the bias of the product before it, is
        added first. GELU is the exact one, by the error function. One launch.
        """
        x = self.tensor(x, "x")
        if x.shape[-1] % 2:
            raise BadWeights(f"x has {x.shape[-1]} channels; expected as many values as gates")
        columns = x.shape[-1] // 2
        if offset is not None:
            offset = self.tensor(offset, "offset", (2 * columns,))
        y = x.new_empty((*x.shape[:-1], columns))
        if y.numel():
            count = y.numel() // columns
            wide = self.width((columns,), x, offset, y)
            cut = geometry.rows(count, columns, wide)
            arguments = _GEGLU.pack(*self.pointers(x, offset, y), count, columns, cut.lanes)
            self.launch("geglu", wide, (*cut.grid, 1), cut.threads, arguments)
        return y

    def add(
        self,
        x: Tensor,
        offset: Tensor | None = None,
        residual: Tensor | None = None,
        shared: Tensor | None = None,
    ) -> Tensor:
        """Return `x + offset + residual + shared` in one launch.

        `x: [B, C, H, W]` or `[B, N, C]`, `residual` of the same shape, `offset: [C]` or `[B, C]`,
        `shared: [C]`.
        """
        if x.ndim == 4:
            size = x.shape[2], x.shape[3]
            return self._sum("add", x, offset, residual, size, shared)
        # tokens are the pixels of an image that is one pixel wide
        x = self.tensor(x, "x").transpose(1, 2)[..., None]
        if residual is not None:
            residual = self.tensor(residual, "residual").transpose(1, 2)[..., None]
        out = self._sum("add", x, offset, residual, (x.shape[2], 1), shared)
        return out[..., 0].transpose(1, 2)

    def upsample(
        self,
        x: Tensor,
        height: int,
        width: int,
        *,
        offset: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Return `x + offset + residual` resized to the nearest neighbour, in one launch.

        `x: [B, C, H, W]` -> `[B, C, height, width]`, the pixels of `F.interpolate(x, size)`.
        The others are as in `add`; the sum is not written down in the small size.
        """
        return self._sum("upsample", x, offset, residual, (height, width))

    def embedding(self, timesteps: Tensor, y: Tensor | None, weights: Sequence[Tensor]) -> Tensor:
        """Compute the time embedding and all its projections, in 3 launches.

        `timesteps: [B]` of any dtype, `y: [B, adm_channels]` or None, `weights` in the order of
        `UNet.embedding_weights`. Returns `emb: [B, emb_channels]` and, for each residual block, its
        projection `[B, C']`, flat and one after the other. The sinusoids are computed in float32.
        """
        return Embedding(self, timesteps).compute(y, list(weights))

    def _sum(
        self,
        kernel: str,
        x: Tensor,
        offset: Tensor | None,
        residual: Tensor | None,
        size: tuple[int, int],
        shared: Tensor | None = None,
    ) -> Tensor:
        x = self.image(x, "x")
        batch, channels, *from_size = x.shape
        if residual is not None:
            residual = self.image(residual, "residual", x.shape)
        offset, stride = self.offset(offset, batch, channels)
        shared, _ = self.offset(shared, 1, channels)
        y = self.new_image(batch, channels, *size)
        if not y.numel():
            return y
        pixels = size[0] * size[1]
        if kernel == "add" and not stride:  # all images are alike, so they are one
            batch, pixels = 1, batch * pixels
        elif kernel == "upsample":
            self.check_pixels(from_size[0] * from_size[1], pixels)
        wide = self.width((channels,), x, residual, offset, shared, y)
        cut = geometry.rows(pixels, channels, wide)
        arguments = _ADD.pack(
            *self.pointers(x, residual, offset, shared, y),
            *(pixels, channels, stride, cut.lanes, *from_size, *size),
        )
        self.launch(kernel, wide, (*cut.grid, batch), cut.threads, arguments)
        return y
