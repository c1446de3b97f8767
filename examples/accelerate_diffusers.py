"""Accelerate a diffusers StableDiffusionPipeline (SD1 or SD2) by sharing its UNet's weights.

    accelerated = AcceleratedPipeline(pipe)
    pipe("a lighthouse")        # unchanged
    accelerated.remove()

A UNet with the LDM names borrows the Parameter objects of diffusers' UNet: there is no second copy.
"""

from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

import lib_accel
from lib_accel.model import presets
from lib_accel.model.architecture import Architecture
from lib_accel.model.unet import UNet


class AcceleratedPipeline:
    """Puts an accelerated UNet behind `pipe.unet`, from its construction to `remove`."""

    def __init__(self, pipe, config=None):
        self.unet = pipe.unet
        ldm = [name for name, _ in UNet(presets.sd1()).named_parameters()]
        checkpoint = {f"model.diffusion_model.{name}": name for name in ldm}
        names = convert_ldm_unet_checkpoint(checkpoint, self.unet.config)  # diffusers' to LDM's
        shared = {names[name]: p for name, p in self.unet.named_parameters()}
        architecture = Architecture.from_shapes({name: p.shape for name, p in shared.items()})
        self.accelerated = lib_accel.accelerate(UNet(architecture).adopt(shared), config)
        self.unet.forward = self.forward

    def forward(self, sample, timestep, encoder_hidden_states, return_dict=True, **_):
        timesteps = timestep.expand(len(sample)).to(sample.device)
        out = self.accelerated.unet(sample, timesteps, encoder_hidden_states)
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)

    def remove(self):
        del self.unet.forward
        self.accelerated.remove()
