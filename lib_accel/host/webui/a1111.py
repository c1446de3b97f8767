"""AUTOMATIC1111's WebUI, 1.6 and later."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Sequence
from typing import Any

import torch
from modules import devices, sd_hijack, sd_unet, shared
from torch import nn

from ...runtime.accelerated import Call
from .protocol import Host, Reading

_LORA = ("networks", "network", "network_lora", "lyco_helpers", "lora_patches")


class A1111(Host):
    """AUTOMATIC1111's WebUI, see `Host`. We merge its LoRAs, and it computes in the weights' dtype.

    Its UNets are those of the `ldm` and `sgm` packages.
    """

    home = ("ldm", "sgm", "modules", "torch", "networks", "lib_accel")
    model_code = ("ldm", "sgm")
    patching = ("modules", *_LORA)
    resizes_first = passes_options = False
    taiyi = accelerates_vae = True

    def unet_of(self, sd_model: Any) -> nn.Module | None:
        """Return the UNet of a loaded model or None. SD3's is refused later, by its names."""
        return getattr(getattr(sd_model, "model", None), "diffusion_model", None)

    def vae_of(self, sd_model: Any) -> nn.Module | None:
        """Return the VAE of a loaded model or None."""
        return getattr(sd_model, "first_stage_model", None)

    def attention(self) -> str:
        """Return the name of the optimization that is chosen in the settings."""
        return str(getattr(sd_hijack.model_hijack, "optimization_method", None))

    def stands_for(self, name: str, function: types.FunctionType) -> bool:
        """Return False: functions have their own names."""
        return False

    def blocked_by(self, unet: nn.Module) -> str | None:
        """Return what the WebUI is doing right now that compiled code cannot follow, or None."""
        opts = shared.opts
        if sd_unet.current_unet is not None:
            return f"another extension's UNet is active: {sd_unet.current_unet.option.label}"
        if shared.loaded_hypernetworks:
            return "a hypernetwork is active; it changes every attention layer"
        if devices.unet_needs_upcast:
            return "the WebUI upcasts this UNet while sampling (--upcast-sampling)"
        if opts.lora_functional and getattr(self.lora_extension(), "loaded_networks", None):
            return "LoRAs are applied at run time (Settings, Compatibility: old Lora method)"
        if opts.upcast_attn and next(unet.parameters()).dtype in (torch.float16, torch.bfloat16):
            return (
                "the WebUI computes attention in float32 "
                "(Settings, Stable Diffusion: upcast cross attention layer)"
            )
        return None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Compute in the WebUI's own precision."""
        return devices.autocast()

    def computation_dtype(self, unet: nn.Module) -> torch.dtype | None:
        """Return None: it is that of the weights."""
        return None

    def lora_extension(self) -> Any:
        """Return the module of the Lora extension, or None where that is disabled.

        Others have modules of this name too, for example kohya's sd-scripts.
        """
        module = sys.modules.get("networks")
        parts = ("loaded_networks", "network_apply_weights")
        return module if all(hasattr(module, name) for name in parts) else None

    def control_networks(self) -> Sequence[nn.Module]:
        """Return none: an extension has them, see `control_networks_behind`."""
        return ()

    def keep_free(self, sd_model: Any, size: int) -> None:
        """Do nothing: the WebUI does not count memory."""

    def read(self, call: Call) -> Reading:
        """Return the call as it is: what is unknown in it is refused for any UNet."""
        return Reading(call)

    def layer_inputs(
        self, layer: str, module: nn.Module, given: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Return what is given: `(h)`, `(h, emb)` or `(h, context)`."""
        return given
