"""A small sampler: Euler with classifier-free guidance, the WebUI's default, without the WebUI."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...model.architecture import Architecture

Denoiser = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
"""`(x, timesteps, context, y) -> eps`, the call of a UNet."""

GUIDANCE = 7.0
"""The WebUI's default."""


def schedule(steps: int) -> tuple[Tensor, Tensor]:
    """Return `(sigmas: [steps + 1], timesteps: [steps])`.

    The betas are those of Stable Diffusion: scaled linear, 0.00085 to 0.012, 1,000 steps.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    all_sigmas = ((1 - alphas) / alphas).sqrt()
    timesteps = torch.linspace(999, 0, steps).round()
    return torch.cat([all_sigmas[timesteps.long()], torch.zeros(1)]).float(), timesteps.float()


class Conditions:
    """The random inputs of a picture, fixed by a seed. `height` and `width` in pixels.

    `latent: [1, C, H/8, W/8]` is the noise. There is no text encoder here, so random numbers stand
    for the prompt: `context: [2, 77, context_dim]` (without, with guidance), `y: [2, adm_channels]`
    or None. `extra: [2, C, H/8, W/8]` or None is the mask and the masked image of inpainting and
    edit models: zeros.
    """

    def __init__(self, a: Architecture, height: int, width: int, seed: int, device: torch.device):
        g = torch.Generator().manual_seed(seed)
        size = (height // 8, width // 8)
        self.latent = torch.randn(1, a.out_channels, *size, generator=g).to(device)
        self.context = torch.randn(2, 77, a.context_dim, generator=g).to(device)
        self.y = torch.randn(2, a.adm_channels, generator=g).to(device) if a.adm_channels else None
        extra = a.in_channels - a.out_channels
        self.extra = torch.zeros(2, extra, *size, device=device) if extra > 0 else None


def sample(unet: Denoiser, conditions: Conditions, steps: int) -> Iterator[Tensor]:
    """Yield the latents `[1, C, H/8, W/8]` after each of `steps` Euler steps.

    A step is one UNet call at batch 2: without and with guidance.
    """
    sigmas, timesteps = schedule(steps)
    x = conditions.latent * sigmas[0]
    for i in range(steps):
        sigma = sigmas[i].item()
        model_in = torch.cat([x, x]) / (sigma**2 + 1) ** 0.5
        if conditions.extra is not None:
            model_in = torch.cat([model_in, conditions.extra], dim=1)
        t = timesteps[i].expand(2).to(x.device)
        eps = unet(model_in, t, conditions.context, conditions.y).float()
        without, guided = eps.chunk(2)
        eps = without + GUIDANCE * (guided - without)
        x = x + eps * (sigmas[i + 1].item() - sigma)  # eps is dx/dsigma
        yield x


# Linear approximations of the decoders, [4, 3], published at
# https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204 (SD1) and in its
# SDXL follow-up.
_RGB_SD1 = [
    [0.298, 0.207, 0.208],
    [0.187, 0.286, 0.173],
    [-0.158, 0.189, 0.264],
    [-0.184, -0.271, -0.473],
]
_RGB_SDXL = [
    [0.3448, 0.4168, 0.4395],
    [-0.1953, -0.0290, 0.0250],
    [0.1074, 0.0886, -0.0163],
    [-0.3730, -0.2499, -0.2088],
]


def to_rgb(latent: Tensor, a: Architecture) -> Tensor:
    """Turn latents `[1, 4, h, w]` into pixels `[h, w, 3]` of uint8, one for each latent.

    Latents of a real model have a deviation of about 1; those of random weights are larger, and
    are scaled down to that.
    """
    latent = latent / latent.float().std().clamp(min=1.5)
    factors = torch.tensor(_RGB_SDXL if a.adm_channels else _RGB_SD1)
    pixels = torch.einsum("chw,cr->hwr", latent[0].float().cpu(), factors)
    return ((pixels + 1) / 2 * 255).clamp(0, 255).round().to(torch.uint8)
