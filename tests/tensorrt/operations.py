"""Computes with torch what TensorRT is given: the operations of a network, one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.compile.backends.tensorrt.network import Network
from lib_accel.model.unet import timestep_embedding


def compute(network: Network, given: Mapping[str, Tensor]) -> Tensor:
    """Compute the network's output. `given`: its activations and weights by name."""
    values = dict(given)
    dtype = next(values[name].dtype for name in network.weights)
    for operation in network.operations:
        inputs = (values[name] for name in operation.inputs)
        values[operation.output] = _COMPUTE[operation.kind](*inputs, **operation.settings).to(dtype)
    return values[network.output]


def _convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2)


def _geglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _join(h: Tensor, skip: Tensor) -> Tensor:
    height, width = skip.shape[-2:]
    return torch.cat([h[:, :, :height, :width], skip], dim=1)


_COMPUTE: dict[str, Callable[..., Tensor]] = {
    "sinusoids": timestep_embedding,
    "linear": lambda x, weight, *bias: F.linear(x, weight.flatten(1), *bias),
    "convolution": _convolution,
    "group_norm": lambda x, weight, bias, groups, eps: F.group_norm(x, groups, weight, bias, eps),
    "layer_norm": lambda x, weight, bias, eps: F.layer_norm(x, weight.shape, weight, bias, eps),
    "silu": F.silu,
    "geglu": _geglu,
    "attention": _attention,
    "add": torch.add,
    "add_per_channel": lambda x, y: x + y[:, :, None, None],
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "pixels": lambda x, like: x.transpose(1, 2).unflatten(-1, like.shape[-2:]),
    "upsample": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "join": _join,
}
