"""Forge and reForge: WebUIs that keep the model behind a patcher and pass options into the UNet.

Forge's code lies in `backend`, reForge's (ComfyUI's) in `ldm_patched`. Both merge LoRAs themselves
before the first call, and put new parameters in place, which is followed as any other move.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import operator
import sys
import types
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from modules import sd_models
from torch import nn

from ...runtime.accelerated import Call
from .forge_calls import is_touched, read
from .protocol import Host, Reading

_ATTENTION = {
    "attention_function": "backend.attention",
    "optimized_attention": "ldm_patched.ldm.modules.attention",
    "optimized_attention_masked": "ldm_patched.ldm.modules.attention",
}
"""The names by which the model's code calls attention, and the module of what they stand for."""

_EXACT = frozenset(
    f"attention_{way}" for way in ("basic", "flash", "pytorch", "split", "sub_quad", "xformers")
)
"""The functions of these modules that compute what ours computes; SageAttention rounds."""


class Forge(Host):
    """Forge, reForge and their like, see `Host`."""

    home = ("backend", "ldm_patched", "modules", "modules_forge", "diffusers", "torch", "lib_accel")
    model_code = ("backend", "ldm_patched")
    patching = ("modules", "modules_forge")
    resizes_first = passes_options = True
    taiyi = accelerates_vae = False

    def __init__(self) -> None:
        self._dtypes: weakref.WeakKeyDictionary[nn.Module, torch.dtype | None]
        self._dtypes = weakref.WeakKeyDictionary()
        self._having: weakref.WeakKeyDictionary[nn.Module, list[dict[str, Any]]]
        self._having = weakref.WeakKeyDictionary()

    def unet_of(self, sd_model: Any) -> nn.Module | None:
        """Return the UNet of a loaded model; None for a model that is yet to be loaded."""
        objects = getattr(sd_model, "forge_objects", None)
        model = getattr(getattr(objects, "unet", None), "model", None)
        unet = getattr(model, "diffusion_model", None)
        if unet is not None and unet not in self._dtypes:
            own = getattr(unet, "computation_dtype", None) or getattr(unet, "dtype", None)
            self._dtypes[unet] = getattr(model, "manual_cast_dtype", None) or own
        return unet

    def vae_of(self, sd_model: Any) -> nn.Module | None:
        """Return the VAE of a loaded model or None."""
        vae = getattr(getattr(sd_model, "forge_objects", None), "vae", None)
        return getattr(vae, "first_stage_model", None)

    def attention(self) -> str:
        """Return the name of the function that computes attention."""
        found = (getattr(sys.modules.get(m), name, None) for name, m in _ATTENTION.items())
        return next((f.__name__ for f in found if f is not None), "")

    def stands_for(self, name: str, function: types.FunctionType) -> bool:
        """Return whether a function is one of those that compute attention by this name."""
        module = function.__globals__["__name__"]
        return _ATTENTION.get(name) == module and function.__name__ in _EXACT

    def blocked_by(self, unet: nn.Module) -> str | None:
        """Return why the weights are not what the layers compute with, or None."""
        if unet not in self._having:
            modules = [m for m in unet.modules() if vars(m)["_parameters"]]
            self._having[unet] = list(map(vars, modules))
        own = self._having[unet]
        if any(map(dict.get, own, itertools.repeat("forge_online_loras"))):
            return (
                "LoRAs are applied at each call "
                "(Diffusion in Low Bits: choose one without fp16 LoRA)"
            )
        for name in ("weight_function", "bias_function"):
            if any(map(dict.get, own, itertools.repeat(name))):
                return f"weights are changed at each call ({name})"
        tables = map(operator.itemgetter("_parameters"), own)
        parameters = itertools.chain.from_iterable(map(dict.values, tables))
        if len({p.device for p in parameters if p is not None}) > 1:
            return "a part of the model is outside video memory (raise GPU Weights)"
        return None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Change nothing: it casts by itself."""
        return contextlib.nullcontext()

    def computation_dtype(self, unet: nn.Module) -> torch.dtype | None:
        """Return the dtype that the sampler casts a call to."""
        return self._dtypes.get(unet)

    def lora_extension(self) -> Any:
        """Return None: LoRAs are merged before a call. reForge's module has stubs alone."""
        return None

    def control_networks(self) -> Sequence[nn.Module]:
        """Return those in the linked list of the patcher. T2I adapters are none."""
        objects = getattr(sd_models.model_data.sd_model, "forge_objects", None)
        listed = getattr(getattr(objects, "unet", None), "list_controlnets", list)()
        models = (getattr(each, "control_model", None) for each in listed)
        return [model for model in models if isinstance(model, nn.Module)]

    def keep_free(self, sd_model: Any, size: int) -> None:
        """Add it to what the patcher of this sampling asks to be left free, in a copy of it.

        The patcher itself serves other images too.
        """
        unet = copy.copy(sd_model.forge_objects.unet)
        unet.add_extra_preserved_memory_during_sampling(size)
        sd_model.forge_objects.unet = unet

    def read(self, call: Call) -> Reading:
        """Return what the options of a call ask for."""
        return read(call)

    def layer_inputs(
        self, layer: str, module: nn.Module, given: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Return the tensors before the options; nothing where these change the layer."""
        if not given or not isinstance(given[-1], dict):
            return given
        transformer = type(module).__name__ == "SpatialTransformer"
        return () if is_touched(layer, transformer, given[-1]) else given[:-1]
