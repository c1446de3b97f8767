"""What the tests on the pretend card share."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.runtime.graphs import cache

PRETENDED = "PRETEND_CARD" in os.environ

if not PRETENDED:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let convolutions outside compiled code do without cuDNN, which cannot be pretended.

    Its layout is torch's choice: channels-last where the input or the weight is.
    """

    def conv2d(
        x: Tensor, weight: Tensor, bias: Any = None, stride: int = 1, padding: int = 0
    ) -> Tensor:
        height, width = (
            (n + 2 * padding - k) // stride + 1
            for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)
        )
        contiguous = all(t.is_contiguous() for t in (x, weight))
        layout = torch.contiguous_format if contiguous else torch.channels_last
        x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
        shape = (x.shape[0], weight.shape[0], height, width)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)

    monkeypatch.setattr(F, "conv2d", conv2d)


@pytest.fixture(autouse=True)
def replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every replay be equal to the plain call: memory keeps what was there before both."""
    monkeypatch.setattr(cache, "relative_error", lambda *_: 0.0)
