"""What lies between the convolutions, products and attentions of a UNet or VAE, in fused kernels.

Images are `[B, C, H, W]` in channels-last memory, tokens are `[B, N, C]` and contiguous; in memory
both are rows of C numbers. A tensor in another layout is copied first. Everything is computed in
float32 and rounded once, to the dtype of the kernels, which activations and weights have too.
NaN and infinity go through as in torch's own operations. No operation has gradients, none waits
for the card, and results are new tensors, made by torch's allocator on the current stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .launching import Launcher


class Kernels:
    """The operations of one device and dtype: float16, bfloat16 or float32.

    Every method raises BadWeights where shapes, dtypes or devices do not fit each other.
    """

    def __init__(self, launcher: Launcher, dtype: torch.dtype) -> None:
        self._launcher = launcher
        self.dtype = dtype

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
    ) -> Tensor:
        """Normalise groups of channels (Wu and He 2018), then SiLU with `silu`, in two launches.

        `x: [B, C, H, W]`, `weight, bias: [C]` -> `[B, C, H, W]`, channels-last. With
        `skip: [B, C2, H, W]` it is the norm of `cat([x, skip], 1)`, which is not written down, and
        weight, bias and result have C + C2 channels. `offset: [B, C]` or `[C]` is added to every
        pixel of x first: the bias of the convolution before it, the projected time embedding.
        """
        raise NotImplementedError

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
        the norm is of the sum as it was rounded. With neither to add, the sum is x itself.
        """
        raise NotImplementedError

    def geglu(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Return values times GELU of gates (Shazeer 2020): `x: [B, N, 2C] -> [B, N, C]`.

        The first C channels are the values. `offset: [2C]`, the bias of the product before it, is
        added first. GELU is the exact one, by the error function. One launch.
        """
        raise NotImplementedError

    def add(
        self, x: Tensor, offset: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Return `x + offset + residual` in one launch.

        `x: [B, C, H, W]` or `[B, N, C]`, `residual` of the same shape, `offset: [C]` or `[B, C]`.
        """
        raise NotImplementedError

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
        raise NotImplementedError

    def embedding(
        self,
        timesteps: Tensor,
        y: Tensor | None,
        weights: Sequence[Tensor],
        added: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Compute the time embedding and all its projections, in 3 launches (with y: 4).

        `timesteps: [B]` of any dtype, `y: [B, adm_channels]` or None, `weights` in the order of
        `UNet.embedding_weights`. Returns `emb: [B, emb_channels]` and, for each residual block, its
        projection `[B, C']`, plus `added[i]: [C']` (the bias of the block's first convolution),
        which makes it the `offset` of `group_norm`. The sinusoids are computed in float32.
        """
        raise NotImplementedError
