"""A UNet with the classes, parameter names and calls of Forge's, of any size.

Blocks pass `transformer_options` on to their layers, `control` is added to what blocks return, and
an upsampling layer is told the size that it is to return.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.attention import attention_function


class Linear(nn.Module):
    """No `nn.Linear`: Forge's stores weights in any format. Without a bias, it holds a None."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.bias: Any = None
        if bias:
            self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class TimestepBlock(nn.Module):
    """A layer that is given the embedding of the time step."""


class ResBlock(TimestepBlock):
    def __init__(self, spec: Any):
        super().__init__()
        c, o = spec.in_channels, spec.out_channels
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, c), nn.SiLU(), nn.Conv2d(c, o, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(spec.emb_channels, o))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, o), nn.SiLU(), nn.Dropout(0), nn.Conv2d(o, o, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if c == o else nn.Conv2d(c, o, 1)

    def forward(self, x: Tensor, emb: Tensor, transformer_options: Any = {}) -> Tensor:  # noqa: B006
        h = self.in_layers(x) + self.emb_layers(emb)[..., None, None]
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Module):
    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k, self.to_v = (Linear(context_dim, channels, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(Linear(channels, channels), nn.Dropout(0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(source), self.to_v(source)
        return self.to_out(attention_function(q, k, v, self.heads))


class GEGLU(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.proj = Linear(channels, 8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels), nn.Dropout(0), Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, heads)
        self.attn2 = CrossAttention(channels, context_dim, heads)
        self.ff = FeedForward(channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor, transformer_options: Any) -> Tensor:
        n = self.norm1(x)
        for patch in transformer_options.get("patches", {}).get("attn1_patch", ()):
            n = patch(n)
        replaced = transformer_options.get("patches_replace", {}).get("attn1", {})
        attention = replaced.get(transformer_options.get("block"), self.attn1)
        x = attention(n) + x
        x = self.attn2(self.norm2(x), context=context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, spec: Any):
        super().__init__()
        c = spec.channels
        self.norm = nn.GroupNorm(32, c, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(c, spec.context_dim, spec.heads) for _ in range(spec.depth)
        )

    def forward(self, x: Tensor, context: Tensor, transformer_options: Any = {}) -> Tensor:  # noqa: B006
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 1)
        tokens = h.flatten(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context, transformer_options)
        return x + self.proj_out(tokens.view(h.shape).permute(0, 3, 1, 2))


class Downsample(nn.Module):
    def __init__(self, spec: Any):
        super().__init__()
        self.op = nn.Conv2d(spec.in_channels, spec.out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, spec: Any):
        super().__init__()
        self.conv = nn.Conv2d(spec.in_channels, spec.out_channels, 3, padding=1)

    def forward(self, x: Tensor, output_shape: Any = None) -> Tensor:
        size = [2 * n for n in x.shape[2:]] if output_shape is None else output_shape[2:]
        return self.conv(F.interpolate(x, size=tuple(size), mode="nearest"))


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, context: Tensor, options: Any, output_shape: Any = None
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, TimestepBlock):
                x = layer(x, emb, options)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, options)
            elif isinstance(layer, Upsample):
                x = layer(x, output_shape=output_shape)
            else:
                x = layer(x)
        return x


class IntegratedUNet2DConditionModel(nn.Module):
    """Built from a `lib_accel` Architecture without labels."""

    def __init__(self, architecture: Any):
        super().__init__()
        a = architecture
        self.model_channels = a.model_channels
        self.computation_dtype: torch.dtype | None = None
        self.time_embed = nn.Sequential(
            Linear(a.model_channels, a.emb_channels),
            nn.SiLU(),
            Linear(a.emb_channels, a.emb_channels),
        )
        self.input_blocks = nn.ModuleList(map(_block, a.input_blocks))
        self.middle_block = _block(a.middle_block)
        self.output_blocks = nn.ModuleList(map(_block, a.output_blocks))
        out = a.output
        conv = nn.Conv2d(out.in_channels, out.out_channels, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(32, out.in_channels), nn.SiLU(), conv)

    def forward(
        self,
        x: Tensor,
        timesteps: Any = None,
        context: Any = None,
        y: Any = None,
        control: Any = None,
        transformer_options: Any = {},  # noqa: B006
        **kwargs: Any,
    ) -> Tensor:
        options, patches = transformer_options, transformer_options.get("patches", {})
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        h, skips = x, []
        for number, block in enumerate(self.input_blocks):
            options["block"] = ("input", number)
            h = apply_control(block(h, emb, context, options), control, "input")
            skips.append(h)
        options["block"] = ("middle", 0)
        h = apply_control(self.middle_block(h, emb, context, options), control, "middle")
        for number, block in enumerate(self.output_blocks):
            options["block"] = ("output", number)
            skip = apply_control(skips.pop(), control, "output")
            for patch in patches.get("output_block_patch", ()):
                h, skip = patch(h, skip)
            h = torch.cat([h, skip], dim=1)
            h = block(h, emb, context, options, skips[-1].shape if skips else None)
        return self.out(h)


def apply_control(h: Tensor, control: Any, name: str) -> Tensor:
    if control is not None and control.get(name):
        more = control[name].pop()
        if more is not None:
            h += more
    return h


def _block(specs: Any) -> TimestepEmbedSequential:
    classes = {cls.__name__: cls for cls in (ResBlock, SpatialTransformer, Downsample, Upsample)}
    layers = (
        classes[type(s).__name__](s)
        if type(s).__name__ in classes
        else nn.Conv2d(s.in_channels, s.out_channels, 3, padding=1)
        for s in specs
    )
    return TimestepEmbedSequential(*layers)


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    half = channels // 2
    order = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * order / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
