"""A UNet with the classes, parameter names and calls of ldm's, of any size."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch as th  # the WebUI puts its own there
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm32(nn.GroupNorm):
    def __init__(self, channels: int):
        super().__init__(32, channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


class TimestepBlock(nn.Module):
    """A layer that is given the embedding of the time step."""


class ResBlock(TimestepBlock):
    def __init__(self, spec: Any):
        super().__init__()
        c, o = spec.in_channels, spec.out_channels
        self.in_layers = nn.Sequential(GroupNorm32(c), nn.SiLU(), nn.Conv2d(c, o, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(spec.emb_channels, o))
        self.out_layers = nn.Sequential(
            GroupNorm32(o), nn.SiLU(), nn.Dropout(0), nn.Conv2d(o, o, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if c == o else nn.Conv2d(c, o, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[..., None, None]
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Module):
    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k, self.to_v = (nn.Linear(context_dim, channels, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Linear(channels, 8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels), nn.Dropout(0), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.attn1, self.attn2 = (
            CrossAttention(channels, channels, heads),
            CrossAttention(channels, context_dim, heads),
        )
        self.ff = FeedForward(channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._forward(x, context)

    def _forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
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

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 1)
        tokens = h.flatten(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context=context)
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

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, TimestepBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    """Built from a `lib_accel` Architecture without labels."""

    def __init__(self, architecture: Any):
        super().__init__()
        a = architecture
        self.model_channels = a.model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(a.model_channels, a.emb_channels),
            nn.SiLU(),
            nn.Linear(a.emb_channels, a.emb_channels),
        )
        self.input_blocks = nn.ModuleList(map(_block, a.input_blocks))
        self.middle_block = _block(a.middle_block)
        self.output_blocks = nn.ModuleList(map(_block, a.output_blocks))
        out = a.output
        self.out = nn.Sequential(
            GroupNorm32(out.in_channels),
            nn.SiLU(),
            nn.Conv2d(out.in_channels, out.out_channels, 3, padding=1),
        )

    def forward(
        self, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None, **kwargs: Any
    ) -> Tensor:
        assert y is None
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(th.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)


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
