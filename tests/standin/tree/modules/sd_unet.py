"""Other extensions' UNets, one of which may replace the model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from modules import shared


class SdUnetOption:
    label: str | None = None

    def create_unet(self) -> SdUnet:
        raise NotImplementedError


class SdUnet(nn.Module):
    option: SdUnetOption

    def activate(self) -> None:
        """Called when it is put in place."""

    def deactivate(self) -> None:
        """Called when it is taken away."""


unet_options: list[SdUnetOption] = []
current_unet: Any = None


def apply_unet(option: str | None = None) -> None:
    """Put the UNet of that name in place, or the one of the settings; "None" is the model's."""
    global current_unet
    wanted = next((o for o in unet_options if o.label == (option or shared.opts.sd_unet)), None)
    if (current_unet.option if current_unet else None) is wanted:
        return
    if current_unet is not None:
        current_unet.deactivate()
    current_unet = wanted.create_unet() if wanted else None
    if current_unet is not None:
        current_unet.option = wanted
        current_unet.activate()


def create_unet_forward(original_forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The class forward of UNetModel as the WebUI patches it."""

    def forward(
        self: nn.Module,
        x: Tensor,
        timesteps: Any = None,
        context: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if current_unet is not None:
            return current_unet.forward(x, timesteps, context, *args, **kwargs)
        return original_forward(self, x, timesteps, context, *args, **kwargs)

    return forward
