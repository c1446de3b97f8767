"""Random weights that keep activations in range, for benchmarks, demonstrations and tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .architecture import Architecture
from .unet import UNet


def random_weights(
    architecture: Architecture, dtype: torch.dtype, seed: int
) -> dict[str, nn.Parameter]:
    """Return a weight for every parameter of the UNet, by its LDM name, on the CPU.

    Activations keep about the same size at every width and depth. No layer is zero, so that each
    one changes the output.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(random_weight(name, p.shape, generator).to(dtype), requires_grad=False)
        for name, p in UNet(architecture).named_parameters()
    }


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return one float32 weight. A matrix or a kernel keeps the variance of what it multiplies."""
    weight = torch.empty(shape)
    if len(shape) > 1:
        return weight.normal_(std=shape[1:].numel() ** -0.5, generator=generator)
    mean, std = (0.0, 0.02) if name.endswith("bias") else (1.0, 0.05)
    return weight.normal_(mean, std, generator=generator)
