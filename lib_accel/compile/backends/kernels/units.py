"""Units by torch's convolutions, products and attention, and `Kernels` for all between them.

Everything is channels-last: an image `[B, C, H, W]` and its tokens `[B, H*W, C]` are one memory.
Convolutions and products have no bias: a kernel adds it on its way. The products of a skip
connection are added to the memory of the convolution beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ....model import specs
from ...units import UnitFn
from .operations import Kernels

EPS, EPS_OF_IMAGE = 1e-5, 1e-6
"""What a norm adds to the variance: by default, and in a VAE and at the start of a transformer."""


def unit_fn(unit: specs.Spec, kernels: Kernels) -> UnitFn:
    """Return the function that computes a unit; it holds no weights.

    Raises KeyError for a layer that is no unit.
    """
    return functools.partial(_without_gradients, _UNITS[type(unit)], unit, kernels)


def _without_gradients(
    compute: Callable[..., Tensor], unit: specs.Spec, kernels: Kernels, inputs: list[Tensor]
) -> Tensor:
    with torch.no_grad():
        return compute(unit, kernels, inputs)


def _embedding(unit: specs.Embedding, kernels: Kernels, inputs: list[Tensor]) -> Tensor:
    timesteps, *given = inputs
    y = None if unit.adm_channels is None else given.pop(0)
    _, *weights = given  # the kernel computes the frequencies of the sinusoids
    return kernels.embedding(timesteps, y, weights)


def _residual_block(unit: specs.ResBlock, kernels: Kernels, inputs: list[Tensor]) -> Tensor:
    count = 8 if unit.in_channels == unit.out_channels else 10
    *images, projected = inputs[:-count]
    return _residual(kernels, images, inputs[-count:], EPS, projected)


def _vae_block(unit: specs.VaeBlock, kernels: Kernels, inputs: list[Tensor]) -> Tensor:
    return _residual(kernels, inputs[:1], inputs[1:], EPS_OF_IMAGE)


def _residual(
    kernels: Kernels,
    images: Sequence[Tensor],
    weights: Sequence[Tensor],
    eps: float,
    projected: Tensor | None = None,
) -> Tensor:
    """Compute a residual block of one image, or of two that are concatenated.

    `projected: [B, C']` is the time embedding's, for UNets. The last two weights are those of a
    product in the skip connection, where it changes the channels.
    """
    scale1, shift1, conv1, bias1, scale2, shift2, conv2, bias2, *skip = weights
    h = _convolved(_active(kernels, images, scale1, shift1, eps), conv1)
    offsets = {"offset": bias1} if projected is None else {"offset": projected, "shared": bias1}
    h = _convolved(_active(kernels, [h], scale2, shift2, eps, **offsets), conv2)
    if not skip:
        x = images[0] if len(images) == 1 else torch.cat([*images], 1)
        return kernels.add(h, bias2, x)
    weight, bias = skip
    widths = [image.shape[1] for image in images]
    for image, columns in zip(images, weight.flatten(1).split(widths, 1), strict=True):
        _add_product(_tokens(h), _tokens(image), columns)
    return kernels.add(h, bias2, shared=bias)


class _Block(NamedTuple):
    """The weights of a transformer block in its unit, in their order."""

    query1: Tensor
    key1: Tensor
    value1: Tensor
    out1: Tensor
    bias1: Tensor
    query2: Tensor
    out2: Tensor
    bias2: Tensor
    gates: Tensor
    gates_bias: Tensor
    out3: Tensor
    bias3: Tensor
    scale1: Tensor
    shift1: Tensor
    scale2: Tensor
    shift2: Tensor
    scale3: Tensor
    shift3: Tensor


def _transformer(unit: specs.SpatialTransformer, kernels: Kernels, inputs: list[Tensor]) -> Tensor:
    x, *context = inputs[: 1 + 2 * unit.depth]
    scale, shift, product_in, bias, *weights, product_out, bias_out = inputs[1 + 2 * unit.depth :]
    normed = kernels.group_norm(x, scale, shift, specs.NORM_GROUPS, EPS_OF_IMAGE)
    t, out = None, F.linear(_tokens(normed), product_in.flatten(1))
    for i in range(unit.depth):
        block = _Block(*weights[i * len(_Block._fields) : (i + 1) * len(_Block._fields)])
        keys_and_values = context[2 * i : 2 * i + 2]
        t, out = _transformer_block(kernels, unit.heads, t, out, bias, keys_and_values, block)
        bias = block.bias3
    out = F.linear(kernels.add(out, bias, t), product_out.flatten(1))
    return kernels.add(_image(out, x), bias_out, x)


def _transformer_block(
    kernels: Kernels,
    heads: int,
    t: Tensor | None,
    out: Tensor,
    bias: Tensor,
    context: Sequence[Tensor],
    w: _Block,
) -> tuple[Tensor, Tensor]:
    """Compute a block of `t + out + bias`, `[B, N, C]`; `context` are keys and values.

    Returns what goes on beside its last product, and this product without its bias: whoever needs
    their sum next adds them on its way, and rounds once.
    """
    t, n = kernels.layer_norm(out, w.scale1, w.shift1, EPS, residual=t, offset=bias)
    own = (F.linear(n, weight) for weight in (w.query1, w.key1, w.value1))
    out = F.linear(_attention(heads, *own), w.out1)
    t, n = kernels.layer_norm(out, w.scale2, w.shift2, EPS, residual=t, offset=w.bias1)
    out = F.linear(_attention(heads, F.linear(n, w.query2), *context), w.out2)
    t, n = kernels.layer_norm(out, w.scale3, w.shift3, EPS, residual=t, offset=w.bias2)
    return t, F.linear(kernels.geglu(F.linear(n, w.gates), w.gates_bias), w.out3)


def _attention(heads: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, keys, values))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _output(unit: specs.Output | specs.VaeOutput, kernels: Kernels, inputs: list[Tensor]) -> Tensor:
    x, scale, shift, conv, bias = inputs
    eps = EPS if isinstance(unit, specs.Output) else EPS_OF_IMAGE
    return F.conv2d(_active(kernels, [x], scale, shift, eps), conv, bias, padding=1)


def _vae_attention(unit: specs.VaeAttention, kernels: Kernels, inputs: list[Tensor]) -> Tensor:
    x, scale, shift, *products, weight, bias = inputs
    n = _tokens(kernels.group_norm(x, scale, shift, specs.NORM_GROUPS, EPS_OF_IMAGE))
    pairs = zip(products[::2], products[1::2], strict=True)
    q, k, v = (F.linear(n, each.flatten(1), own)[:, None] for each, own in pairs)  # one head
    out = F.scaled_dot_product_attention(q, k, v)[:, 0]
    return kernels.add(_image(F.linear(out, weight.flatten(1)), x), bias, x)


def _upsample(unit: specs.Upsample, kernels: Kernels, inputs: list[Tensor]) -> Tensor:
    x, conv, bias = inputs
    doubled = kernels.upsample(x, 2 * x.shape[2], 2 * x.shape[3])
    return F.conv2d(doubled, conv, bias, padding=1)


def _active(
    kernels: Kernels,
    images: Sequence[Tensor],
    scale: Tensor,
    shift: Tensor,
    eps: float,
    **offsets: Tensor,
) -> Tensor:
    """Normalise an image, or the concatenation of two, and apply SiLU."""
    x, *skip = images
    more = {"skip": skip[0]} if skip else {}
    return kernels.group_norm(x, scale, shift, specs.NORM_GROUPS, eps, silu=True, **more, **offsets)


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve with a 3x3 kernel; the result is channels-last whatever computes it."""
    return F.conv2d(x, weight, padding=1).contiguous(memory_format=torch.channels_last)


def _tokens(image: Tensor) -> Tensor:
    """Return a channels-last image as `[B, H*W, C]`, the same memory."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def _image(tokens: Tensor, like: Tensor) -> Tensor:
    """Return `[B, H*W, C]` as a channels-last image of the height and width of `like`."""
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def _add_product(t: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add `x @ weight.T` to `t: [B, N, C]` in place."""
    t.view(-1, t.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.t())


_UNITS: dict[type, Callable[..., Tensor]] = {
    specs.Embedding: _embedding,
    specs.ResBlock: _residual_block,
    specs.SpatialTransformer: _transformer,
    specs.Output: _output,
    specs.Upsample: _upsample,
    specs.VaeBlock: _vae_block,
    specs.VaeAttention: _vae_attention,
    specs.VaeOutput: _output,
}
