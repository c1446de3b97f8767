"""What a WebUI without the extension computes: its default attention, and torch's own layers.

The default is chosen in the WebUI's `modules/sd_hijack_optimizations.py`: InvokeAI where there is
no GPU, else Doggettx. Both hold the scores of plain attention in memory and compute them in slices:
of at most 32 MiB without a GPU, of a third of the free video memory with one.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...compile.machine import free_memory
from ...model.architecture import Architecture
from ...model.layers import Attention, FeedForward
from ...model.parts.modules import Conv2d, GroupNorm, LayerNorm, Linear
from ...model.specs import NORM_GROUPS
from ...model.unet import Parameters, UNet
from ...model.vae.layers import VaeAttention
from ...model.vae.network import Half, Network

CPU_SLICE_BYTES = 32 * 2**20
GPU_SHARE = 1 / 3.3
HALVES = (torch.float16, torch.bfloat16)
TRANSFORMER_EPS = 1e-6
"""By which LDM's norms in transformers differ from those in residual blocks, its GroupNorm32."""


def attention_name(device: torch.device) -> str:
    """Return what the WebUI calls its default attention on `device`."""
    return "InvokeAI" if device.type == "cpu" else "Doggettx"


def stock_unet(architecture: Architecture, parameters: Parameters, sdpa: bool = False) -> UNet:
    """Return a UNet of these very parameters that computes as the WebUI does by itself.

    `sdpa`: with fused attention, as with the WebUI's flag --opt-sdp-attention.
    """
    unet = UNet(architecture).adopt(parameters)
    ways = {Conv2d: _conv2d, FeedForward: _feed_forward}
    if not sdpa:
        ways[Attention] = _attention
    for module in unet.modules():
        if way := ways.get(type(module)):
            module.forward = functools.partial(way, module)
    return _under_autocast(unet)


def stock_vae(half: Half, parameters: Parameters, sdpa: bool = False) -> Network:
    """Return half a VAE of these very parameters that computes as the WebUI does by itself.

    `sdpa`: as in `stock_unet`. The WebUI decodes without autocast.
    """
    network = Network(half).adopt(parameters)
    ways: dict[type, Any] = {Conv2d: _conv2d}
    if not sdpa:
        ways[VaeAttention] = _vae_attention
    for layer in network.modules():
        for module in layer.modules():
            if way := ways.get(type(module)):
                module.forward = functools.partial(way, module)
            if isinstance(module, Conv2d):
                module.of_doubled = functools.partial(_doubled, module)
    return network


def _doubled(layer: Conv2d, x: Tensor) -> Tensor:
    return layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _vae_attention(layer: VaeAttention, x: Tensor, *_: Tensor) -> Tensor:
    n = layer.norm.tokens(x)
    q, k, v = layer.q(n), layer.k(n).transpose(1, 2), layer.v(n)  # [B, N, C]
    out, size = torch.zeros_like(q), q.shape[1]
    needed = 2.5 * q.shape[0] * q.shape[1] ** 2 * q.element_size()
    if q.device.type == "cuda" and needed > (free := free_memory(q.device)):
        size //= 2 ** math.ceil(math.log2(needed / free))
    for part in range(0, q.shape[1], size):
        scores = q[:, part : part + size] @ k * q.shape[-1] ** -0.5
        out[:, part : part + size] = scores.softmax(-1, dtype=q.dtype) @ v
    return x + layer.proj_out(out).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _under_autocast(unet: UNet) -> UNet:
    """Let 16-bit weights on a GPU be used as with the WebUI's default `--precision autocast`.

    Norms then compute in float32, and each product converts what it is given
    (`modules/devices.py: autocast`). Elsewhere autocast changes nothing.
    """
    if next(unet.parameters()).device.type != "cuda" or unet.dtype not in HALVES:
        return unet
    ways = {Linear: _linear, GroupNorm: _group_norm, LayerNorm: _layer_norm}
    for module in unet.modules():
        if way := ways.get(type(module)):
            module.forward = functools.partial(way, module)
    unet.forward = torch.autocast("cuda", unet.dtype)(unet.forward)
    return unet


def _linear(layer: Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def _group_norm(layer: GroupNorm, x: Tensor) -> Tensor:
    if layer.eps == TRANSFORMER_EPS:
        return F.group_norm(x, NORM_GROUPS, layer.weight, layer.bias, layer.eps)
    wide = F.group_norm(x.float(), NORM_GROUPS, layer.weight, layer.bias, layer.eps)
    return wide.type(x.dtype)  # LDM's GroupNorm32


def _layer_norm(layer: LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), layer.weight, layer.bias, 1e-5)


def _conv2d(layer: Conv2d, x: Tensor, *_: Tensor) -> Tensor:
    # the WebUI's activations are never channels-last
    return F.conv2d(x.contiguous(), layer.weight, layer.bias, layer.stride, layer.padding)


def _feed_forward(layer: FeedForward, x: Tensor) -> Tensor:
    return layer.net["2"](layer.net["0"](x))


def _attention(layer: Attention, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    q, k, v = (
        t.unflatten(-1, (layer.heads, -1)).transpose(1, 2).flatten(0, 1)
        for t in (layer.to_q(x), keys, values)
    )
    k = (k * q.shape[-1] ** -0.5).transpose(1, 2)
    scores = q.shape[0] * q.shape[1] * k.shape[2] * q.element_size()  # bytes
    slices = 2 ** math.ceil(math.log2(max(1.0, scores / _most_bytes(q.device))))
    by = 0 if slices <= q.shape[0] else 1  # whole heads, or rows of each head
    out = torch.zeros_like(q)
    for part in range(0, q.shape[by], size := max(1, q.shape[by] // slices)):
        some = (slice(part, part + size),) if by == 0 else (slice(None), slice(part, part + size))
        k_some, v_some = (t[some] if by == 0 else t for t in (k, v))
        out[some] = (q[some] @ k_some).softmax(-1, dtype=q.dtype) @ v_some
    return layer.to_out["0"](out.unflatten(0, (-1, layer.heads)).transpose(1, 2).flatten(2))


def _most_bytes(device: torch.device) -> float:
    return GPU_SHARE * free_memory(device) if device.type == "cuda" else CPU_SLICE_BYTES
