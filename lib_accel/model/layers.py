"""The layers of the clean UNet, which own no weights. Those of the VAE are in `vae/layers.py`.

Each is built without storage, and its parameters have the checkpoint's names. None derives from a
layer class of torch: the WebUI patches the forwards of those classes (`nn.Linear`, `nn.Conv2d`,
`nn.GroupNorm`, ...), and such a patch must not get into code that is to be compiled.

The formulas are those of the LDM code (`ldm/modules/attention.py`,
`ldm/modules/diffusionmodules/openaimodel.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import specs
from .parts import cpu_operators
from .parts.modules import Conv2d, GroupNorm, LayerNorm, Linear
from .vae.layers import VaeAttention, VaeBlock, VaeDownsample, VaeOutput

LayerFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A layer as a function of `h: [B, C, H, W]`, `emb: [B, emb_channels]` and
`context: [B, L, context_dim]`, which returns `[B, C', H', W']`. It may ignore the last two."""


@runtime_checkable
class JoiningLayer(Protocol):
    """A layer that can take what comes through a skip connection apart, and need not copy it."""

    def join(self, h: Tensor, skip: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """Compute the layer of `h: [B, C1, H, W]` and `skip: [B, C2, H, W]`, concatenated."""
        ...


def build_layer(spec: specs.Spec) -> nn.Module:
    """Build the module of one layer, without storage; it is a LayerFn.

    Its parameter names are those of the checkpoint after the layer's own name. In `forward`, all
    activations must have one dtype; weights of another dtype are converted at each use.
    """
    return _BUILDERS[type(spec)](spec)


class ResBlock(nn.Module):
    """Residual block, conditioned by adding a projection of `emb` to every pixel.

    With `fused` it is written for a compiler that need not write concatenated tensors down.
    """

    fused = False

    def __init__(self, spec: specs.ResBlock):
        super().__init__()
        c, o = spec.in_channels, spec.out_channels
        # The numbers are those of the checkpoint's names; activations and dropout have the others.
        self.in_layers = nn.ModuleDict({"0": GroupNorm(c), "2": Conv2d(c, o)})
        self.emb_layers = nn.ModuleDict({"1": Linear(spec.emb_channels, o)})
        self.out_layers = nn.ModuleDict({"0": GroupNorm(o), "3": Conv2d(o, o)})
        self.skip_connection = Conv2d(c, o, kernel=1) if c != o else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.compute(x, *self.prepare(emb, context))

    def prepare(self, emb: Tensor, context: Tensor) -> list[Tensor]:
        """Return the projection of `emb: [B, emb_channels]`, `[B, C']`."""
        return [self.emb_layers["1"](F.silu(emb))]

    def compute(self, *inputs: Tensor) -> Tensor:
        """Compute the block from `x: [B, C, H, W]` and what `prepare` returns.

        Instead of x there may be two tensors that were to be concatenated along the channels.
        """
        *parts, projected = inputs
        x = parts[0] if len(parts) == 1 else self._joined(*parts)
        h = self.in_layers["2"](F.silu(self.in_layers["0"](x)))
        h = h + projected.unflatten(1, (-1, 1, 1))
        h = self.out_layers["3"](F.silu(self.out_layers["0"](h)))
        if self.fused and len(parts) > 1 and isinstance(self.skip_connection, Conv2d):
            return self.skip_connection.of_parts(parts) + h
        return self.skip_connection(x) + h

    def _joined(self, h: Tensor, skip: Tensor) -> Tensor:
        if not self.fused:
            return torch.cat([h, skip], dim=1)
        # The same numbers, for Inductor: it takes a reduction over a `cat` for one with gaps
        # between what it reads, and its kernel took 320 us on an H200 where the bytes take 20.
        return F.pad(h, (0, 0, 0, 0, 0, skip.shape[1])) + F.pad(skip, (0, 0, 0, 0, h.shape[1], 0))


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of `x: [B, N, C]` to keys and values."""

    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context_dim, channels, bias=False)
        self.to_v = Linear(context_dim, channels, bias=False)
        self.to_out = nn.ModuleDict({"0": Linear(channels, channels)})

    def keys_and_values(self, context: Tensor) -> list[Tensor]:
        """Return both for `context: [B, L, D]`, `[B, L, C]` each."""
        return [self.to_k(context), self.to_v(context)]

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(x), keys, values)
        )
        out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, C/heads]
        return self.to_out["0"](out.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """Gated GELU of Shazeer 2020, "GLU Variants Improve Transformer": `[B, N, C] -> [B, N, 4C]`."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj = Linear(channels, 8 * channels)  # values, then gates

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU and the projection back: `[B, N, C] -> [B, N, C]`."""

    def __init__(self, channels: int):
        super().__init__()
        cpu_operators.register()
        self.net = nn.ModuleDict({"0": GEGLU(channels), "2": Linear(4 * channels, channels)})

    def forward(self, x: Tensor) -> Tensor:
        if cpu_operators.applies(x):
            # In the order of definition: weight and bias of GEGLU, then of the projection back.
            return cpu_operators.feed_forward(x, *(p.to(x.dtype) for p in self.parameters()))
        return self.net["2"](self.net["0"](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalised first and added.

    `x: [B, N, C]`, `keys` and `values` of the context, `[B, L, C]` -> `[B, N, C]`.
    """

    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.attn1 = Attention(channels, channels, heads)
        self.attn2 = Attention(channels, context_dim, heads)
        self.ff = FeedForward(channels)
        self.norm1, self.norm2, self.norm3 = (LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        n = self.norm1(x)
        x = self.attn1(n, *self.attn1.keys_and_values(n)) + x
        x = self.attn2(self.norm2(x), keys, values) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer over the pixels, added to its input: `x: [B, C, H, W] -> [B, C, H, W]`."""

    def __init__(self, spec: specs.SpatialTransformer):
        super().__init__()
        c = spec.channels
        self.norm = GroupNorm(c, eps=1e-6)
        self.proj_in = Linear(c, c, conv=not spec.linear)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(c, spec.context_dim, spec.heads) for _ in range(spec.depth)
        )
        self.proj_out = Linear(c, c, conv=not spec.linear)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.compute(x, *self.prepare(emb, context))

    def prepare(self, emb: Tensor, context: Tensor) -> list[Tensor]:
        """Return keys and values of `context: [B, L, D]`, block by block: `[B, L, C]` each."""
        blocks: list[Any] = [*self.transformer_blocks]
        return [t for block in blocks for t in block.attn2.keys_and_values(context)]

    def compute(self, x: Tensor, *keys_and_values: Tensor) -> Tensor:
        """Compute the transformer from `x: [B, C, H, W]` and what `prepare` returns."""
        height, width = x.shape[-2:]
        t = self.proj_in(self.norm.tokens(x))  # [B, H*W, C]
        for i, block in enumerate(self.transformer_blocks):
            t = block(t, *keys_and_values[2 * i : 2 * i + 2])
        t = self.proj_out(t)
        return x + t.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """3x3 convolution of stride 2: `x: [B, C, H, W] -> [B, C', ceil(H/2), ceil(W/2)]`."""

    def __init__(self, spec: specs.Downsample):
        super().__init__()
        self.op = Conv2d(spec.in_channels, spec.out_channels, stride=2)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest-neighbour x2 and a 3x3 convolution: `x: [B, C, H, W] -> [B, C', 2H, 2W]`."""

    def __init__(self, spec: specs.Upsample):
        super().__init__()
        self.conv = Conv2d(spec.in_channels, spec.out_channels)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.compute(x)

    def prepare(self, emb: Tensor, context: Tensor) -> list[Tensor]:
        """Return nothing: the layer needs neither `emb` nor `context`."""
        return []

    def compute(self, x: Tensor) -> Tensor:
        """Compute the layer from `x: [B, C, H, W]`."""
        return self.conv.of_doubled(x)


class Output(nn.ModuleDict):
    """GroupNorm, SiLU and a 3x3 convolution: `x: [B, C, H, W] -> [B, out_channels, H, W]`."""

    def __init__(self, spec: specs.Output):
        super().__init__(
            {"0": GroupNorm(spec.in_channels), "2": Conv2d(spec.in_channels, spec.out_channels)}
        )

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.compute(x)

    def prepare(self, emb: Tensor, context: Tensor) -> list[Tensor]:
        """Return nothing: the layer needs neither `emb` nor `context`."""
        return []

    def compute(self, x: Tensor) -> Tensor:
        """Compute the layer from `x: [B, C, H, W]`."""
        return self["2"](F.silu(self["0"](x)))


_BUILDERS: dict[type, Callable[..., nn.Module]] = {
    specs.Conv: lambda spec: Conv2d(spec.in_channels, spec.out_channels),
    specs.Downsample: Downsample,
    specs.Upsample: Upsample,
    specs.ResBlock: ResBlock,
    specs.SpatialTransformer: SpatialTransformer,
    specs.Output: Output,
    specs.VaeBlock: VaeBlock,
    specs.VaeAttention: VaeAttention,
    specs.VaeDownsample: VaeDownsample,
    specs.VaeOutput: VaeOutput,
}
