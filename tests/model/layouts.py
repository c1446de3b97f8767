"""Counts the copies that change nothing but a memory layout, on a fake CUDA device.

Fake tensors have shapes and strides and no values, so that real sizes cost nothing and no GPU is
needed. What torch's CUDA kernels copy inside is written down here, from their source:
`aten/src/ATen/native/group_norm.cpp` (a group norm takes and returns NCHW) and
`aten/src/ATen/native/ConvUtils.h: cudnn_conv_use_channels_last` (a convolution is channels-last
where either its input or its weight is). tests/gpu/test_layouts.py compares the first with torch.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten, NHWC = torch.ops.aten, torch.channels_last
_COPIES = (aten.clone.default, aten._to_copy.default, aten.copy_.default)


class LayoutCopies(TorchDispatchMode):
    """Counts the layout copies of what runs in it, by what makes them.

    `counts["inside cuDNN"]` are those that torch does not show: tensor cores take channels-last
    operands, so cuDNN transposes input, weight and result of a contiguous convolution in half
    precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, with the strides that it has on CUDA, and count its copies."""
        out = func(*args, **(kwargs or {}))
        if func is aten.native_group_norm.default:
            self.counts["group norm"] += not args[0].is_contiguous()
            contiguous = torch.empty_like(out[0], memory_format=torch.contiguous_format)
            return (contiguous, *out[1:])
        if func is aten.convolution.default:
            return self._convolution(out, *args[:2])
        if func in _COPIES:
            source = args[1] if func is aten.copy_.default else args[0]
            self.counts["copy"] += source.dtype == out.dtype and source.stride() != out.stride()
        return out

    def _convolution(self, out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        channels_last = any(
            t.is_contiguous(memory_format=NHWC) and not t.is_contiguous() for t in (x, weight)
        )
        layout = NHWC if channels_last else torch.contiguous_format
        self.counts["convolution's input"] += not x.is_contiguous(memory_format=layout)
        self.counts["convolution's weight"] += not weight.is_contiguous(memory_format=layout)
        half = x.dtype in (torch.float16, torch.bfloat16)
        self.counts["inside cuDNN"] += 3 * (half and not channels_last)
        return torch.empty_like(out, memory_format=layout)
