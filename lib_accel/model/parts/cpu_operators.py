"""A convolution and a feed-forward layer that are faster on a CPU than torch's own.

They use weights where they lie, in the layout of the checkpoint. Nothing is packed, so nothing has
to be repacked when a LoRA is merged.

- oneDNN reorders a convolution's weights at every call. At few pixels that takes longer than the
  convolution (1280 to 1280 channels at 8x8: 58 ms, 15 ms with packed weights). There it is faster
  to gather the neighbourhoods of the pixels and to compute one matrix product with the weight seen
  as [O, I*k*k], which leaves the weight alone.
- A convolution of an image in twice its size sees each pixel of the image several times. The four
  pixels that one pixel becomes are computed from the image itself by kernels of 2x2, whose values
  are sums of those of the 3x3 kernel: 16 products for 36. No unit contains it.
- The hidden activations of a feed-forward layer are 8 times as wide as its input. Computed for a
  thousand rows at a time they stay in the cache.

Both choices depend on sizes that are dynamic in an exported program. So these are operators of
torch (`torch.ops.accel`), which compiled code calls by name, and not plain code that export would
trace. `register` must have been called in a process that runs such code. Building a layer does so,
and so does loading compiled code.
"""

from __future__ import annotations

import functools
import threading

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 1024
"""Rows of hidden activations at a time: with at most 10,240 columns, 40 MB in float32."""


def register() -> None:
    """Register the operators with torch unless this process has done so; thread-safe."""
    with _registering:
        _registered()


# torch's registry of operators belongs to the process, so this lock and the cache do too.
_registering = threading.Lock()


@functools.cache
def _registered() -> torch.library.Library:
    """Return the library, which must be kept: torch removes its operators when it is freed.

    It is no `torch.library.custom_op`, which needs torch 2.4.
    """
    library = torch.library.Library("accel", "DEF")
    library.define(
        "conv2d(Tensor x, Tensor weight, Tensor bias, int stride, int padding) -> Tensor"
    )
    library.impl("conv2d", _conv2d, "CPU")
    library.impl("conv2d", _conv2d_shape, "Meta")
    library.define(
        "feed_forward(Tensor x, Tensor weight_in, Tensor bias_in, "
        "Tensor weight_out, Tensor bias_out) -> Tensor"
    )
    library.impl("feed_forward", _feed_forward, "CPU")
    library.impl("feed_forward", _feed_forward_shape, "Meta")
    return library


def applies(x: Tensor) -> bool:
    """Return whether these operators can take `x`: on a CPU, and without gradients.

    The operators have no backward pass, so a UNet that is being trained uses torch's own layers.
    """
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Convolve `x: [B, I, H, W]` by `weight: [O, I, k, k]` and add `bias: [O]`.

    All of one dtype. Returns `[B, O, H', W']`, channels-last. Needs `register`.
    """
    return torch.ops.accel.conv2d(x, weight, bias, stride, padding)


def doubles_faster(x: Tensor, weight: Tensor) -> bool:
    """Return whether `conv2d_of_doubled` takes `x: [B, I, H, W]`, and sums of weights pay.

    Sums are rounded: in 16 bits that would cost accuracy.
    """
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    wide = x.dtype in (torch.float32, torch.float64)
    return applies(x) and wide and pixels >= weight.shape[0]


def conv2d_of_doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve `x: [B, I, H, W]` in twice its height and width by `weight: [O, I, 3, 3]`.

    The doubling is to the nearest pixel. All of one dtype. Returns `[B, O, 2H, 2W]`, channels-last.
    """
    batch, _, height, width = x.shape
    out = torch.empty(
        (batch, weight.shape[0], 2 * height, 2 * width),
        dtype=x.dtype,
        memory_format=torch.channels_last,
    )
    for row, of_row in enumerate(_pairs(weight, 2)):
        for column, kernel in enumerate(_pairs(of_row, 3)):
            pixels = F.conv2d(x, kernel, bias, padding=1)  # [B, O, H+1, W+1]
            out[:, :, row::2, column::2] = pixels[:, :, row : row + height, column : column + width]
    return out


def _pairs(weight: Tensor, dim: int) -> list[Tensor]:
    """Return the two kernels that 3 taps become for the first and the second of two equal pixels.

    The first sees the pixel before once and its own twice; the second its own twice and the next.
    """
    first, middle, last = weight.unbind(dim)
    return [torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)]


def feed_forward(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    """Compute GEGLU (Shazeer 2020) of `x: [B, N, C]` and the projection back to `[B, N, C]`.

    `weight_in: [8C, C]` (values, then gates), `bias_in: [8C]`, `weight_out: [C, 4C]`,
    `bias_out: [C]`, all of one dtype. Needs `register`.
    """
    return torch.ops.accel.feed_forward(x, weight_in, bias_in, weight_out, bias_out)


def _sizes(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int, int]:
    """Return B, H' and W' of the convolution's result."""
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
        padded = F.pad(x.contiguous(), (padding,) * 4)
        # [B, I, H', W', k, k]
        patches = padded.unfold(2, kernel, stride).unfold(3, kernel, stride)
        # [I*k*k, B*H'*W']: rows in the order of the weight's own memory
        columns = patches.permute(1, 4, 5, 0, 2, 3).flatten(3).flatten(0, 2)
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
