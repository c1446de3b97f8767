"""A job: the order in which things are called while images are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import networks
import torch
from torch import Tensor

from modules import script_callbacks, scripts, sd_models, sd_unet
from modules.call_queue import queue_lock
from modules.shared import opts, state


@dataclass
class StableDiffusionProcessing:
    x: Tensor  # what the sampler starts with: [B, 4, H/8, W/8]
    timesteps: Tensor
    context: Tensor
    networks: list[Any] = field(default_factory=list)  # what the prompt asks for
    steps: int = 2
    n_iter: int = 1
    extra_generation_params: dict[str, object] = field(default_factory=dict)
    override_settings: dict[str, Any] = field(default_factory=dict)  # for this job alone


def process_images(p: StableDiffusionProcessing) -> list[Tensor]:
    """Return one tensor for each of the `n_iter` batches."""
    with queue_lock:
        state.interrupted = state.skipped = state.stopping_generation = False  # as `begin` does
        scripts.call("before_process", p)
        before = {name: opts.data[name] for name in p.override_settings}
        try:
            opts.data.update(p.override_settings)  # no callbacks, neither here nor below
            with torch.no_grad():
                sd_unet.apply_unet()
                made = []
                for n in range(p.n_iter):
                    state.skipped = False
                    if state.interrupted or state.stopping_generation:
                        break
                    made.append(_batch(p, n))
            scripts.call("postprocess", p, made)
        finally:
            opts.data.update(before)
    return made


def _batch(p: StableDiffusionProcessing, number: int) -> Tensor:
    scripts.call("before_process_batch", p, batch_number=number)
    networks.extra_network_lora.errors.clear()
    networks.loaded_networks[:] = p.networks
    x = p.x
    for step in range(p.steps):
        if state.interrupted or state.skipped:
            break
        script_callbacks.cfg_denoiser_callback(SimpleNamespace(x=x))
        denoised = sd_models.model_data.sd_model.apply_model(
            x, p.timesteps, {"c_crossattn": [p.context]}
        )
        script_callbacks.cfg_denoised_callback(
            SimpleNamespace(x=denoised, sampling_step=step, total_sampling_steps=p.steps)
        )
        script_callbacks.cfg_after_cfg_callback(
            SimpleNamespace(x=denoised, sampling_step=step, total_sampling_steps=p.steps)
        )
        x = x - 0.1 * denoised
    vae = sd_models.model_data.sd_model.first_stage_model
    for sample in x.split(1) if vae is not None else ():  # one by one, as `decode_latent_batch`
        vae.decode(sample)
    scripts.call("postprocess_batch", p, x, batch_number=number)
    return x
