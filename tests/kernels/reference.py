"""The operations of the backend `kernels` by torch's own, in the dtype of what they are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.model.parts.embedding import timestep_embedding


class TorchKernels:
    """Has the methods of `Kernels`, on any device and in any dtype."""

    def group_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        *,
        silu: bool = False,
        skip: Tensor | None = None,
        offset: Tensor | None = None,
        shared: Tensor | None = None,
    ) -> Tensor:
        x = self.add(x, offset, shared=shared)
        x = x if skip is None else torch.cat([x, skip], 1)
        y = F.group_norm(x, groups, weight, bias, eps)
        y = F.silu(y) if silu else y
        return y.contiguous(memory_format=torch.channels_last)

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        *,
        residual: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        x = self.add(x, offset, residual)
        return x, F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def geglu(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        values, gates = self.add(x, offset).chunk(2, -1)
        return values * F.gelu(gates)

    def add(
        self,
        x: Tensor,
        offset: Tensor | None = None,
        residual: Tensor | None = None,
        shared: Tensor | None = None,
    ) -> Tensor:
        x = x if shared is None else self.add(x, shared)
        if offset is not None and x.ndim == 4:
            x = x + offset.unflatten(-1, (-1, 1, 1))
        elif offset is not None:
            x = x + (offset if offset.ndim == 1 else offset[:, None])
        return x if residual is None else x + residual

    def upsample(
        self,
        x: Tensor,
        height: int,
        width: int,
        *,
        offset: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        y = F.interpolate(self.add(x, offset, residual), (height, width), mode="nearest")
        return y.contiguous(memory_format=torch.channels_last)

    def embedding(self, timesteps: Tensor, y: Tensor | None, weights: Sequence[Tensor]) -> Tensor:
        t = timestep_embedding(timesteps, weights[0].shape[1]).to(weights[0].dtype)
        emb, weights = self._perceptron(t, weights[:4]), weights[4:]
        if y is not None:
            emb, weights = emb + self._perceptron(y, weights[:4]), weights[4:]
        active = F.silu(emb)
        out = [F.linear(active, *weights[i : i + 2]) for i in range(0, len(weights), 2)]
        return torch.cat([t.flatten() for t in (emb, *out)])

    def _perceptron(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return F.linear(F.silu(F.linear(x, *weights[:2])), *weights[2:])
