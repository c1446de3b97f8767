"""The time embedding, and what residual blocks project it to, as one layer without weights.

The formulas are those of the LDM code (`util.py` and `openaimodel.py` in
`ldm/modules/diffusionmodules`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import specs
from .modules import Linear, empty_parameter


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Return the sinusoidal embedding of Vaswani et al. 2017, section 3.5, `[B, channels]` float32.

    `timesteps: [B]`, fractions allowed. `channels` is even.
    """
    return _sinusoids(timesteps, timestep_frequencies(channels, timesteps.device))


def timestep_frequencies(channels: int, device: torch.device) -> Tensor:
    """Return the frequencies of the sinusoids in radians per timestep, `[channels/2]` float32.

    They fall geometrically from 1 towards 1/10,000.
    """
    half = channels // 2
    numbers = torch.arange(half, dtype=torch.float32, device=device)
    return torch.exp(-math.log(10000) / half * numbers)


def _sinusoids(timesteps: Tensor, frequencies: Tensor) -> Tensor:
    """Return all cosines, then all sines: `[B, channels]` float32."""
    angles = torch.outer(timesteps.float(), frequencies.float())
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class FewRows(Linear):
    """Linear layer for a few rows: `x: [B, inputs] -> [B, outputs]`.

    With `fused` it is written out for a compiler that fuses sums: reading the weight is all that
    takes time, and the products of one width become one launch.
    """

    fused = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused or self.bias is None:
            return super().forward(x)
        sums = (x[:, None].float() * self.weight.float()).sum(-1)
        return (sums + self.bias.float()).to(x.dtype)


class Perceptron(nn.ModuleDict):
    """Two linear layers with a SiLU between them: `x: [B, inputs] -> [B, outputs]`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__({"0": FewRows(inputs, outputs), "2": FewRows(outputs, outputs)})

    def forward(self, x: Tensor) -> Tensor:
        return self["2"](F.silu(self["0"](x)))


class Embedding(nn.Module):
    """The time embedding and all its projections: small products that one unit computes.

    The weights of the unit are `frequencies`, those of the UNet's perceptrons, and those of the
    projection of each residual block. Activations have the dtype of the weights.
    """

    def __init__(self, spec: specs.Embedding):
        super().__init__()
        emb = spec.emb_channels
        self.frequencies = empty_parameter(spec.model_channels // 2, dtype=torch.float32)
        self.time_embed = Perceptron(spec.model_channels, emb)
        if spec.adm_channels is not None:
            self.label_emb = Perceptron(spec.adm_channels, emb)
        self.projections = nn.ModuleList(FewRows(emb, width) for width in spec.widths)

    def compute(self, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Return `emb: [B, emb_channels]` and each `[B, width]`, flat and one after the other.

        `timesteps: [B]`, `y: [B, adm_channels]` where the architecture takes it.
        """
        dtype = next(self.time_embed.parameters()).dtype
        emb = self.time_embed(_sinusoids(timesteps, self.frequencies).to(dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        active = F.silu(emb)
        return torch.cat([t.flatten() for t in (emb, *(p(active) for p in self.projections))])
