"""Two layers as a CPU wants them, as operators that compiled and eager code both call.

Weights are used where they lie, in the layout of the checkpoint: nothing is packed, so nothing has to follow a LoRA.

- oneDNN reorders a convolution's weights at every call. At few pixels that costs more than the convolution (1280 to 1280
  channels at 8x8: 58 ms, 15 ms with packed weights). There, gathering the pixels' neighbourhoods and one matrix product over
  the weight seen as [O, I*k*k] does the same without touching the weight.
- A feed-forward layer's hidden activations are 8 times as wide as its input. Done a thousand rows at a time they stay in the cache.

Both choices depend on sizes that are dynamic in an exported program, which is why these are operators and not plain code. They
are registered when this is imported: compiled code finds them by name, and torch takes no second registration.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 1024  # rows of hidden activations at a time: at most 10,240 columns, 40 MB in float32


def applies(x: Tensor) -> bool:
    """Whether these operators are for `x`. They have no gradients: a UNet that is being trained uses torch's own layers."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """`x: [B, I, H, W]`, `weight: [O, I, k, k]`, `bias: [O]` -> `[B, O, H', W']`, channels-last."""
    return torch.ops.accel.conv2d(x, weight, bias, stride, padding)


def feed_forward(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    """GEGLU and the projection back: `x: [B, N, C]`, `weight_in: [8C, C]`, `weight_out: [C, 4C]` -> `[B, N, C]`."""
    return torch.ops.accel.feed_forward(x, weight_in, bias_in, weight_out, bias_out)


def _sizes(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int, int]:
    kernel = weight.shape[2]
    return (
        x.shape[0],
        (x.shape[2] + 2 * padding - kernel) // stride + 1,
        (x.shape[3] + 2 * padding - kernel) // stride + 1,
    )


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    batch, height, width = _sizes(x, weight, stride, padding)
    outputs, _, kernel, _ = weight.shape
    if kernel == 1 and stride == 1:
        out = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    elif batch * height * width > outputs:
        out = F.conv2d(x, weight, bias, stride, padding)
    else:
        patches = (
            F.pad(x.contiguous(), (padding,) * 4)
            .unfold(2, kernel, stride)
            .unfold(3, kernel, stride)
        )  # [B, I, H', W', k, k]
        columns = (
            patches.permute(1, 4, 5, 0, 2, 3).flatten(3).flatten(0, 2)
        )  # [I*k*k, B*H'*W']: the order of the weight's own memory
        rows = torch.addmm(bias, columns.t(), weight.flatten(1).t())
        out = rows.view(batch, height, width, outputs).permute(0, 3, 1, 2)
    return out.contiguous(memory_format=torch.channels_last)


def _conv2d_shape(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    batch, height, width = _sizes(x, weight, stride, padding)
    return torch.empty(
        (batch, weight.shape[0], height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def _feed_forward(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    for start in range(0, rows.shape[0], ROWS):
        hidden, gate = F.linear(rows[start : start + ROWS], weight_in, bias_in).chunk(2, dim=-1)
        out[start : start + ROWS] = F.linear(F.gelu(gate).mul_(hidden), weight_out, bias_out)
    return out.view(x.shape)


def _feed_forward_shape(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    return x.new_empty(x.shape)


_operators = torch.library.Library("accel", "DEF")  # not custom_op: that needs torch 2.4
for _schema, _compute, _shape in (
    (
        "conv2d(Tensor x, Tensor weight, Tensor bias, int stride, int padding) -> Tensor",
        _conv2d,
        _conv2d_shape,
    ),
    (
        "feed_forward(Tensor x, Tensor weight_in, Tensor bias_in, Tensor weight_out, Tensor bias_out) -> Tensor",
        _feed_forward,
        _feed_forward_shape,
    ),
):
    _operators.define(_schema)
    _operators.impl(_schema.partition("(")[0], _compute, "CPU")
    _operators.impl(_schema.partition("(")[0], _shape, "Meta")
