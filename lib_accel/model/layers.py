"""The layers of the clean UNet, which own no weights.

Each is built without storage, and its parameters have the checkpoint's names. None derives from a
layer class of torch: the WebUI patches the forwards of those classes (`nn.Linear`, `nn.Conv2d`,
`nn.GroupNorm`, ...), and such a patch must not get into code that is to be compiled.

The formulas are those of the LDM code (`ldm/modules/attention.py`,
`ldm/modules/diffusionmodules/openaimodel.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import cpu_operators, specs

LayerFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A layer as a function of `h: [B, C, H, W]`, `emb: [B, emb_channels]` and
`context: [B, L, context_dim]`, which returns `[B, C', H', W']`. It may ignore the last two."""


def build_layer(spec: specs.Spec) -> nn.Module:
    """Build the module of one layer, without storage; it is a LayerFn.

    Its parameter names are those of the checkpoint after the layer's own name. In `forward`, all
    activations must have one dtype; weights of another dtype are converted at each use.
    """
    return _BUILDERS[type(spec)](spec)


def set_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """Make this very object, not a copy, the parameter of that (dotted) name."""
    home, _, own = name.rpartition(".")
    setattr(module.get_submodule(home), own, parameter)


def empty_parameter(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    """Return a parameter without storage (on the meta device), to be replaced by a real one."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def _like(weight: Tensor, x: Tensor) -> Tensor:
    """Return the weight in the dtype of `x`.

    Where `x` is wider than the weights, one layer's weights at a time exist in the wide dtype.
    """
    return weight if weight.dtype == x.dtype else weight.to(x.dtype)


class Linear(nn.Module):
    """Linear layer: `x: [..., inputs] -> [..., outputs]`.

    With `conv` the weight has the shape of a 1x1 convolution, [outputs, inputs, 1, 1].
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True, conv: bool = False):
        super().__init__()
        self.weight = empty_parameter(outputs, inputs, *([1, 1] if conv else []))
        self.bias = empty_parameter(outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else _like(self.bias, x)
        return F.linear(x, _like(self.weight, x).flatten(1), bias)


class Conv2d(nn.Module):
    """Zero-padded convolution: `x: [B, inputs, H, W] -> [B, outputs, H/stride, W/stride]`."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1):
        super().__init__()
        cpu_operators.register()
        self.weight = empty_parameter(outputs, inputs, kernel, kernel)
        self.bias = empty_parameter(outputs)
        self.stride, self.padding = stride, kernel // 2

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        """Ignores `emb` and `context`, which every layer of a block is given."""
        weight, bias = _like(self.weight, x), _like(self.bias, x)
        if cpu_operators.applies(x):
            return cpu_operators.conv2d(x, weight, bias, self.stride, self.padding)
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class GroupNorm(nn.Module):
    """Group normalisation with 32 groups (Wu and He 2018): `[B, C, H, W] -> [B, C, H, W]`.

    `eps` is 1e-5 in residual blocks and the output layer, 1e-6 in transformers, as in the LDM code.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = empty_parameter(channels), empty_parameter(channels)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _like(self.weight, x), _like(self.bias, x)
        return F.group_norm(x, specs.NORM_GROUPS, weight, bias, self.eps)


class LayerNorm(nn.Module):
    """Layer normalisation over the channels (Ba et al. 2016): `[B, N, C] -> [B, N, C]`."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = empty_parameter(channels), empty_parameter(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), _like(self.weight, x), _like(self.bias, x), 1e-5)


class ResBlock(nn.Module):
    """Residual block, conditioned by adding a projection of `emb` to every pixel."""

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

    def compute(self, x: Tensor, projected: Tensor) -> Tensor:
        """Compute the block from `x: [B, C, H, W]` and what `prepare` returns."""
        h = self.in_layers["2"](F.silu(self.in_layers["0"](x)))
        h = h + projected[:, :, None, None]
        h = self.out_layers["3"](F.silu(self.out_layers["0"](h)))
        return self.skip_connection(x) + h


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
        # [B, H*W, C]: a view where the norm's result is channels-last, a copy where it is not
        t = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        t = self.proj_in(t)
        for i, block in enumerate(self.transformer_blocks):
            t = block(t, *keys_and_values[2 * i : 2 * i + 2])
        t = self.proj_out(t)
        return t.unflatten(1, (height, width)).permute(0, 3, 1, 2) + x


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
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


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
}
