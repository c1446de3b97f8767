"""The base of text encoders. The WebUI's makes as many chunks as a prompt needs; this one, one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modules import sd_hijack


class TextConditionalModel(nn.Module):
    id_start: int | None
    id_end: int | None
    id_pad: int | None
    comma_token: int | None

    def __init__(self) -> None:
        super().__init__()
        self.hijack = sd_hijack.model_hijack
        self.chunk_length = 75
        self.comma_token = self.id_start = self.id_end = self.id_pad = None

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        raise NotImplementedError

    def encode_with_transformers(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, texts: Any) -> Tensor:
        """Return `[B, 77, C]`."""
        chunks = []
        for ids in self.tokenize(texts):
            padding = [self.id_pad] * (self.chunk_length - len(ids))
            chunks.append([self.id_start, *ids, self.id_end, *padding])
        return self.encode_with_transformers(torch.tensor(chunks))
