"""The layers of a clean VAE, which own no weights.

The formulas are those of the LDM code (`ldm/modules/diffusionmodules/model.py`), with its names of
parameters.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .. import specs
from ..parts.modules import Conv2d, GroupNorm, Linear

EPS = 1e-6
"""Of every GroupNorm in a VAE."""


class _Unconditioned(nn.Module):
    """A layer that needs neither `emb` nor `context`, which every LayerFn is given."""

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.compute(x)

    def prepare(self, emb: Tensor, context: Tensor) -> list[Tensor]:
        """Return nothing."""
        return []

    def compute(self, x: Tensor) -> Tensor:
        """Compute the layer from `x: [B, C, H, W]`."""
        raise NotImplementedError


class VaeBlock(_Unconditioned):
    """Residual block: `x: [B, C, H, W] -> [B, C', H, W]`."""

    def __init__(self, spec: specs.VaeBlock):
        super().__init__()
        c, o = spec.in_channels, spec.out_channels
        self.norm1, self.conv1 = GroupNorm(c, EPS), Conv2d(c, o)
        self.norm2, self.conv2 = GroupNorm(o, EPS), Conv2d(o, o)
        if c != o:
            self.nin_shortcut = Conv2d(c, o, kernel=1)

    def compute(self, x: Tensor) -> Tensor:
        """Compute the block from `x: [B, C, H, W]`."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class VaeAttention(_Unconditioned):
    """Attention of one head over the pixels, added to its input: `[B, C, H, W] -> [B, C, H, W]`."""

    def __init__(self, spec: specs.VaeAttention):
        super().__init__()
        c = spec.channels
        self.norm = GroupNorm(c, EPS)
        self.q, self.k, self.v, self.proj_out = (Linear(c, c, conv=True) for _ in range(4))

    def compute(self, x: Tensor) -> Tensor:
        """Compute the layer from `x: [B, C, H, W]`."""
        n = self.norm.tokens(x).unsqueeze(1)  # [B, 1, H*W, C]
        out = F.scaled_dot_product_attention(self.q(n), self.k(n), self.v(n))
        t = self.proj_out(out.squeeze(1))
        return x + t.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class VaeDownsample(_Unconditioned):
    """3x3 convolution of stride 2, padded at the bottom and right alone."""

    def __init__(self, spec: specs.VaeDownsample):
        super().__init__()
        self.conv = Conv2d(spec.in_channels, spec.out_channels, stride=2, padding=0)

    def compute(self, x: Tensor) -> Tensor:
        """Compute `x: [B, C, H, W] -> [B, C, H/2, W/2]`; odd sizes are rounded down."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class VaeOutput(_Unconditioned):
    """GroupNorm, SiLU and a 3x3 convolution: `x: [B, C, H, W] -> [B, out_channels, H, W]`."""

    def __init__(self, spec: specs.VaeOutput):
        super().__init__()
        self.norm_out = GroupNorm(spec.in_channels, EPS)
        self.conv_out = Conv2d(spec.in_channels, spec.out_channels)

    def compute(self, x: Tensor) -> Tensor:
        """Compute the layer from `x: [B, C, H, W]`."""
        return self.conv_out(F.silu(self.norm_out(x)))
