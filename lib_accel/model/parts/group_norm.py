"""Group normalisation on a GPU that stays channels-last: compiled, and by torch's own kernels."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..specs import NORM_GROUPS

LARGE = 2**15
"""Numbers in a group from which on one thread block takes longer for them than another launch."""


def fused_group_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, by_rows: bool) -> Tensor:
    """Compute `F.group_norm` with 32 groups of `x: [B, C, H, W]`, channels-last, as `[B, H*W, C]`.

    torch's own kernels, and the formula that its compiler puts in their place, return NCHW on a
    GPU, which is then copied for every convolution.

    `by_rows`: compute the statistics of each row of a group first. 32 groups an image alone would
    keep as few thread blocks busy, which is enough for small images. The statistics are float32,
    and variances are of differences: a large mean costs no digits.
    """
    t = x.permute(0, 2, 3, 1).unflatten(-1, (NORM_GROUPS, -1)).float()  # [B, H, W, G, C/G]
    if by_rows:
        variance, mean = torch.var_mean(t, dim=(2, 4), correction=0, keepdim=True)
        shift = mean[:, :1]  # any value near the mean
        variance = (variance + (mean - shift).square()).mean(dim=1, keepdim=True)
        mean = mean.mean(dim=1, keepdim=True)
        variance = variance - (mean - shift).square()
    else:
        variance, mean = torch.var_mean(t, dim=(1, 2, 4), correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps).flatten(1, 2)  # [B, 1, G, 1]
    t = (t.flatten(1, 2) - mean.flatten(1, 2)) * scale  # [B, H*W, G, C/G]
    return (t.flatten(2) * weight + bias).to(x.dtype)


def channels_last_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute `F.group_norm` with 32 groups of `x: [B, C, H, W]`, channels-last, to that layout.

    For use without a compiler. Mean and deviation are at least float32, and there is no float32
    copy of `x`: the kernels widen each number as they read it.
    """
    t = x.permute(0, 2, 3, 1).unflatten(-1, (NORM_GROUPS, -1))  # [B, H, W, G, C/G]
    wide = torch.promote_types(x.dtype, torch.float32)
    mean = t.mean((1, 2, 4), keepdim=True, dtype=wide)  # [B, 1, 1, G, 1]
    deviation = torch.empty_like(mean)
    torch.std(t, (1, 2, 4), correction=0, keepdim=True, out=deviation)
    if _takes_numbers_of_the_host(x.device):
        root = torch.hypot(deviation, torch.tensor(eps**0.5, device="cpu"))
    else:
        root = torch.hypot(deviation, torch.full_like(deviation, eps**0.5))
    scale = weight.view(t.shape[3:]) / root
    shift = torch.addcmul(bias.view(t.shape[3:]), mean, scale, value=-1)
    out = torch.addcmul(shift, t, scale, out=torch.empty_like(t))
    return out.flatten(-2).permute(0, 3, 1, 2)


@functools.cache
def _takes_numbers_of_the_host(device: torch.device) -> bool:
    """Whether `hypot` takes a number on the CPU, which saves a launch: not in torch 2.1."""
    try:
        torch.hypot(torch.ones(1, device=device), torch.tensor(1.0, device="cpu"))
    except RuntimeError:
        return False
    return True
