"""A running stand-in for Forge: its model code, beside the modules of the other stand-in."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lib_accel.compile.speeds import Speeds
from lib_accel.compile.units import UnitFn

from ..tiny import TINY, Inputs, donor, inputs
from .backends import Uncompiled
from .host import ROOT, Host, load_file


class Counting(Uncompiled):
    """Units that count how often each kind of layer was computed by one."""

    computed: Counter[str]

    def code(self, unit: Any) -> UnitFn:
        compute = super().code(unit)

        def counted(given: list[Tensor]) -> Tensor:
            Counting.computed[type(unit).__name__] += 1
            return compute(given)

        return counted


class Forge(Host):
    """A running stand-in for Forge, without pages that are looked at."""

    def __init__(self, *flags: str):
        shared = self.module("modules.shared")
        load_file("preload", ROOT / "preload.py").preload(shared.parser)
        shared.parser.parse_args(flags, shared.cmd_opts)
        self.opts = shared.opts
        witness = self.module("lib_accel.host.unet.witness").Witness
        self._is_due, witness.is_due = witness.is_due, lambda *_: False
        self.module("modules.scripts").load_file(ROOT / "scripts" / "accel.py")
        self.app = self.module("fastapi").FastAPI()
        self.module("modules.script_callbacks").app_started_callback(None, self.app)
        self.service._session.speeds = Speeds()

    def close(self) -> None:
        self.module("modules.script_callbacks").script_unloaded_callback()

    @torch.inference_mode()
    def load(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        unet = self.new_unet(seed).to(dtype)
        unet.computation_dtype = torch.float32  # type: ignore[assignment]
        patcher = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet))
        model = SimpleNamespace(forge_objects=SimpleNamespace(unet=patcher, vae=None))
        self.module("modules.sd_models").model_data.sd_model = model
        self.module("modules.script_callbacks").model_loaded_callback(model)
        return unet

    def new_unet(self, seed: int = 0) -> nn.Module:
        unet = self.module("backend.nn.unet").IntegratedUNet2DConditionModel(TINY)
        unet.load_state_dict(donor(TINY, seed).state_dict())
        return unet.eval()

    @property
    def unet(self) -> Any:
        return self.model.forge_objects.unet.model.diffusion_model

    @torch.inference_mode()
    def call(
        self, given: Inputs | None = None, unet: nn.Module | None = None, **more: Any
    ) -> Tensor:
        """Call the UNet as Forge's sampler does. `more`: further arguments, or options of it."""
        x, timesteps, context, _ = given or inputs()
        control, options = more.pop("control", None), {"cond_or_uncond": [0, 1], **more}
        control = {name: list(tensors) for name, tensors in control.items()} if control else None
        named = {"context": context, "control": control, "transformer_options": options}
        return (self.unet if unet is None else unet)(x, timesteps, **named)


class ControlNet(nn.Module):
    """The encoder of a UNet, called as Forge calls a control network: without options."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.input_blocks, self.middle_block = encoder.input_blocks, encoder.middle_block

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        for block in self.input_blocks:
            x = block(x, emb, context, {})
        return self.middle_block(x, emb, context, {})
