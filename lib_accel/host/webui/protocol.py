"""What differs from one WebUI to another. Each has a class of its own here; all else is shared."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from ...model.unet import Control
from ...runtime.accelerated import Call


class Reading(NamedTuple):
    """What a call of the UNet asks for.

    `call` has the arguments that compiled code knows, and `control` is what is added in it. `led`:
    why the UNet's own forward has to lead from layer to layer. `refused`: why the UNet's own code
    computes all of it.
    """

    call: Call
    control: Control | None = None
    led: str | None = None
    refused: str | None = None


class Host(Protocol):
    """A kind of WebUI. There is one object of it, `webui.host`."""

    home: tuple[str, ...]
    """Packages whose code is original: model code, the WebUI, torch, its Lora extension, ours."""

    model_code: tuple[str, ...]
    """Those of them that UNets are written in."""

    patching: tuple[str, ...]
    """Those that put functions of their own, under any name, in the place of the model's code."""

    resizes_first: bool
    """Whether what comes from below is resized before an upsampling convolution, not after it.

    That differs where a side of the image is no multiple of the deepest level's step.
    """

    passes_options: bool
    """Whether blocks give their layers more than tensors, which only the blocks know."""

    taiyi: bool
    """Whether Taiyi's text encoder can be taught to it."""

    accelerates_vae: bool
    """Whether its VAEs are those that ours compute. Forge's were never tried."""

    def unet_of(self, sd_model: Any) -> nn.Module | None:
        """Return the UNet of a loaded model or None."""
        ...

    def vae_of(self, sd_model: Any) -> nn.Module | None:
        """Return the VAE of a loaded model or None."""
        ...

    def attention(self) -> str:
        """Return how it computes attention: its own speed depends on that."""
        ...

    def stands_for(self, name: str, function: types.FunctionType) -> bool:
        """Return whether the model's code may call this function by this name, not its own."""
        ...

    def blocked_by(self, unet: nn.Module) -> str | None:
        """Return what it is doing right now that compiled code cannot follow, or None."""
        ...

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Compute in its own precision, for layers that are not compiled."""
        ...

    def computation_dtype(self, unet: nn.Module) -> torch.dtype | None:
        """Return what it computes this UNet in, whatever its weights are stored as; None: in that.

        Asked when the UNet is attached.
        """
        ...

    def lora_extension(self) -> Any:
        """Return the module of the Lora extension whose networks we merge, or None."""
        ...

    def control_networks(self) -> Sequence[nn.Module]:
        """Return the control networks of the call that runs, where the host itself knows them."""
        ...

    def keep_free(self, sd_model: Any, size: int) -> None:
        """Let so many bytes of video memory out of account in the sampling that begins.

        CUDA graphs hold them in a pool of their own, which torch counts as reserved and unused.
        """
        ...

    def read(self, call: Call) -> Reading:
        """Return what a call of the UNet asks for."""
        ...

    def layer_inputs(
        self, layer: str, module: nn.Module, given: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Return the tensors of a call of a layer, `module`, in their order.

        Nothing where the layer's own code has to compute the call.
        """
        ...
