"""The truth to compare with: one UNet call at a higher precision, with no second copy of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...model.architecture import Architecture
from ...model.precision import exact_products, wider
from ...model.unet import UNet


def precise_call(
    architecture: Architecture,
    parameters: Mapping[str, nn.Parameter],
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    y: Tensor | None,
) -> Tensor:
    """-> the UNet's output in float64 where the weights are float32, else in float32. Weights are widened layer by layer."""
    unet = UNet(architecture).adopt(parameters)
    unet.compute_dtype = wide = wider(unet.dtype, x.device)
    with torch.no_grad(), exact_products(x.device):
        return unet(x.to(wide), timesteps, context, y)
