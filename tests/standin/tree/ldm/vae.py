"""The VAE of Stable Diffusion: classes, parts and names as in the real ldm package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def nonlinearity(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def Normalize(in_channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, in_channels, eps=1e-6)


class Upsample(nn.Module):
    def __init__(self, in_channels: int, with_conv: bool = True):
        super().__init__()
        self.with_conv = with_conv
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    def __init__(self, in_channels: int, with_conv: bool = True):
        super().__init__()
        self.with_conv = with_conv
        self.conv = nn.Conv2d(in_channels, in_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.pad(x, (0, 1, 0, 1)))


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.use_conv_shortcut = False
        self.norm1 = Normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = Normalize(out_channels)
        self.dropout = nn.Dropout(0.0)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, temb: Any) -> Tensor:
        assert temb is None
        h = self.conv1(nonlinearity(self.norm1(x)))
        h = self.conv2(self.dropout(nonlinearity(self.norm2(h))))
        return (x if self.in_channels == self.out_channels else self.nin_shortcut(x)) + h


class AttnBlock(nn.Module):
    def __init__(self, in_channels: int):
        super().__init__()
        self.norm = Normalize(in_channels)
        self.q = nn.Conv2d(in_channels, in_channels, 1)
        self.k = nn.Conv2d(in_channels, in_channels, 1)
        self.v = nn.Conv2d(in_channels, in_channels, 1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self.q(h).flatten(2), self.k(h).flatten(2), self.v(h).flatten(2)
        weights = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, dim=2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)


class Level(nn.Module):
    def __init__(self, channels: int, out_channels: int, blocks: int):
        super().__init__()
        widths = [channels] + [out_channels] * blocks
        self.block = nn.ModuleList(map(ResnetBlock, widths, widths[1:]))
        self.attn = nn.ModuleList()


class Decoder(nn.Module):
    def __init__(self, ch: int, ch_mult: tuple[int, ...] = (1, 2, 4, 4)):
        super().__init__()
        self.give_pre_end = self.tanh_out = False
        widths = [ch * mult for mult in ch_mult]
        self.conv_in = nn.Conv2d(4, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(map(Level, [*widths[1:], widths[-1]], widths, [3] * len(widths)))
        for level, width in list(zip(self.up, widths, strict=True))[1:]:
            level.upsample = Upsample(width)
        self.norm_out = Normalize(ch)
        self.conv_out = nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h, None)), None)
        for i, level in reversed(list(enumerate(self.up))):
            for block in level.block:
                h = block(h, None)
            if i:
                h = level.upsample(h)
        return self.conv_out(nonlinearity(self.norm_out(h)))


class Encoder(nn.Module):
    def __init__(self, ch: int, ch_mult: tuple[int, ...] = (1, 2, 4, 4)):
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(map(Level, [ch, *widths[:-1]], widths, [2] * len(widths)))
        for level, width in list(zip(self.down, widths, strict=True))[:-1]:
            level.downsample = Downsample(width)
        self.mid = Middle(widths[-1])
        self.norm_out = Normalize(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for i, level in enumerate(self.down):
            for block in level.block:
                h = block(h, None)
            if i < len(self.down) - 1:
                h = level.downsample(h)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h, None)), None)
        return self.conv_out(nonlinearity(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    def __init__(self, ch: int = 32):
        super().__init__()
        self.encoder, self.decoder = Encoder(ch), Decoder(ch)
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)

    def encode(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))
