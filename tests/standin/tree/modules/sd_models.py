"""The loaded models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from modules import script_callbacks


class DiffusionWrapper(nn.Module):
    def __init__(self, unet: nn.Module):
        super().__init__()
        self.diffusion_model = unet

    def forward(self, x: Tensor, t: Tensor, c_crossattn: list[Tensor]) -> Tensor:
        return self.diffusion_model(x, t, context=torch.cat(c_crossattn, 1))


class LatentDiffusion(nn.Module):
    def __init__(self, unet: nn.Module):
        super().__init__()
        self.model = DiffusionWrapper(unet)
        self.first_stage_model: Any = None  # a VAE, where a test gives it one

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: dict[str, list[Tensor]]) -> Tensor:
        return self.model(x_noisy, t, **cond)


class SdModelData:
    def __init__(self) -> None:
        self.sd_model: Any = None
        self.loaded_sd_models: list[Any] = []  # the one used last is the first

    def set_sd_model(self, v: Any, already_loaded: bool = False) -> None:
        self.sd_model = v
        if v in self.loaded_sd_models:
            self.loaded_sd_models.remove(v)
        if v is not None:
            self.loaded_sd_models.insert(0, v)


model_data = SdModelData()
checkpoints_list: dict[str, Any] = {}
checkpoint_aliases: dict[str, Any] = {}


def load_model(unet: nn.Module) -> LatentDiffusion:
    """Make the UNet the loaded model, of new objects, and call the callbacks."""
    model = LatentDiffusion(unet)
    model_data.loaded_sd_models.clear()
    model_data.set_sd_model(model)
    script_callbacks.model_loaded_callback(model)
    return model


def send_model_to_trash(model: nn.Module) -> None:
    model.to(device="meta")


def send_model_to_device(model: nn.Module) -> None:
    model.to("cpu")


def read_state_dict(
    checkpoint_file: str, print_global_state: bool = False, map_location: Any = None
) -> dict[str, Tensor]:
    return safetensors.torch.load(Path(checkpoint_file).read_bytes())
