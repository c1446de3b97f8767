"""The ways to compute attention, of which Forge chooses one at its start."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention_pytorch(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


attention_function = attention_pytorch
