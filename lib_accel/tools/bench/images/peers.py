"""diffusers' VAE on given weights, to measure ours against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ....model.vae.network import DECODER, Half
from ..peers import NoDiffusers, adopt

_PREFIX = "first_stage_model."


class ReferenceVae(nn.Module):
    """diffusers' own decoder or encoder on the given Parameter objects; called as ours is.

    `sdpa` as in `Reference`. Raises NoDiffusers, or BackendUnavailable where it has no such VAE.
    """

    def __init__(self, half: Half, parameters: Mapping[str, nn.Parameter], sdpa: bool):
        super().__init__()
        try:
            from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        except ImportError as e:
            raise NoDiffusers(f"diffusers is not installed ({e}); pip install diffusers") from e
        config = _config(half)
        with torch.device("meta"):
            vae = AutoencoderKL(**config)
        vae.set_attn_processor(AttnProcessor2_0() if sdpa else AttnProcessor())
        self.network = vae.decoder if half.kind == DECODER else vae.encoder
        adopt(self.network, _converted(half, parameters, config))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Compute a latent or an image, `x: [B, C, H, W]`."""
        return self.network(x)


def _converted(
    half: Half, parameters: Mapping[str, nn.Parameter], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the weights by diffusers' names within this half."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    named = {f"{_PREFIX}{half.kind}.{name}": p for name, p in parameters.items()}
    prefix = f"{half.kind}."
    converted = convert_ldm_vae_checkpoint(named, config)
    return {name.removeprefix(prefix): value for name, value in converted.items()}


def _config(half: Half) -> dict[str, Any]:
    shapes, group = half.shapes(), "up" if half.kind == DECODER else "down"
    levels = len({name.split(".")[1] for name in shapes if name.startswith(f"{group}.")})
    widths = [shapes[f"{group}.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    blocks = [n for n in shapes if n.startswith(f"{group}.0.block.") and n.endswith("conv1.weight")]
    return {
        "block_out_channels": widths,
        "layers_per_block": len(blocks) - (half.kind == DECODER),
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
