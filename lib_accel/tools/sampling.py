"""The smallest honest sampler: Euler with classifier-free guidance, as the WebUI's default does it, without the WebUI."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..model.architecture import Architecture

Denoiser = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
"""`(x, timesteps, context, y) -> eps`, as a UNet is called."""


def schedule(steps: int) -> tuple[Tensor, Tensor]:
    """`(sigmas: [steps + 1], timesteps: [steps])` for the betas of Stable Diffusion (scaled linear, 0.00085 to 0.012, 1,000 steps)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    all_sigmas = ((1 - alphas) / alphas).sqrt()
    timesteps = torch.linspace(999, 0, steps).round()
    return torch.cat([all_sigmas[timesteps.long()], torch.zeros(1)]).float(), timesteps.float()


GUIDANCE = 7.0  # the WebUI's default


class Noise:
    """Everything random about an image, fixed by a seed: noise, and embeddings in place of a prompt's (no text encoder here)."""

    def __init__(self, a: Architecture, height: int, width: int, seed: int, device: torch.device):
        g = torch.Generator().manual_seed(seed)
        self.latent = torch.randn(1, a.out_channels, height // 8, width // 8, generator=g).to(
            device
        )
        self.context = torch.randn(2, 77, a.context_dim, generator=g).to(
            device
        )  # [unconditional, conditional]
        self.y = torch.randn(2, a.adm_channels, generator=g).to(device) if a.adm_channels else None
        extra = a.in_channels - a.out_channels  # inpainting and edit models: mask and masked image
        self.extra = (
            torch.zeros(2, extra, height // 8, width // 8, device=device) if extra > 0 else None
        )


def sample(unet: Denoiser, noise: Noise, steps: int) -> Iterator[Tensor]:
    """The latents `[1, 4, H/8, W/8]` after each of `steps` guided Euler steps; a step is one UNet call at batch 2."""
    sigmas, timesteps = schedule(steps)
    x = noise.latent * sigmas[0]
    for i in range(steps):
        sigma = sigmas[i].item()
        model_in = torch.cat([x, x]) / (sigma**2 + 1) ** 0.5
        if noise.extra is not None:
            model_in = torch.cat([model_in, noise.extra], dim=1)
        t = timesteps[i].expand(2).to(x.device)
        without, wanted = unet(model_in, t, noise.context, noise.y).float().chunk(2)
        x = x + (without + GUIDANCE * (wanted - without)) * (
            sigmas[i + 1].item() - sigma
        )  # eps is dx/dsigma
        yield x


# Linear approximations of the decoders, [4, 3], published at
# https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204 (SD1) and in its SDXL follow-up
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
    """`[1, 4, h, w]` latents -> `[h, w, 3]` uint8, one pixel per latent.

    A real model's latents are about 1 large; those of random weights are much larger, and are brought to that.
    """
    latent = latent / latent.float().std().clamp(min=1.5)
    factors = torch.tensor(_RGB_SDXL if a.adm_channels else _RGB_SD1)
    pixels = torch.einsum("chw,cr->hwr", latent[0].float().cpu(), factors)
    return ((pixels + 1) / 2 * 255).clamp(0, 255).round().to(torch.uint8)
