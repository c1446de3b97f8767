"""What stands in for cuDNN on the pretend card: its own libraries ask too much of a card."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library


def without_cudnn() -> Library:
    """Let convolutions outside compiled code return uncomputed memory of the right form.

    They do as long as the result of this call lives. Attention is left to torch's own kernels.
    """
    if hasattr(torch.backends.cuda, "enable_cudnn_sdp"):  # torch 2.5 and later
        torch.backends.cuda.enable_cudnn_sdp(False)
    library = Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one already
        library.impl("cudnn_convolution", _convolution, "CUDA")
    return library


def _convolution(
    x: Tensor,
    weight: Tensor,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    *_: Any,
) -> Tensor:
    """Return `[B, O, H', W']`, channels-last where `x` or `weight` is, as cuDNN does."""
    sizes = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, p, s, d in zip(
            x.shape[2:], weight.shape[2:], padding, stride, dilation, strict=True
        )
    )
    last = any(
        t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
        for t in (x, weight)
    )
    form = torch.channels_last if last else torch.contiguous_format
    shape = (x.shape[0], weight.shape[0], *sizes)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)
