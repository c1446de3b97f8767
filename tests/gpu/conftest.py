"""What the tests on the pretend card share."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

PRETENDED = "PRETEND_CARD" in os.environ

if not PRETENDED:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let convolutions outside compiled code do without cuDNN, which cannot be pretended."""

    def conv2d(
        x: Tensor, weight: Tensor, bias: Any = None, stride: int = 1, padding: int = 0
    ) -> Tensor:
        height, width = (
            (n + 2 * padding - k) // stride + 1
            for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)
        )
        out = x.new_empty(x.shape[0], weight.shape[0], height, width)
        return out.contiguous(memory_format=torch.channels_last)

    monkeypatch.setattr(F, "conv2d", conv2d)
