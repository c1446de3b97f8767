"""The UNets that the WebUI has loaded: which are accelerated, and why others are refused."""

from __future__ import annotations

import gc
import weakref

from torch import nn

from ..runtime.accelerated import accelerated
from .unet.attachment import Attachment


class Models:
    """Every UNet that was loaded, accelerated or not. It keeps none of them alive."""

    def __init__(self) -> None:
        self._seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._refused: weakref.WeakKeyDictionary[nn.Module, tuple[str, object]] = (
            weakref.WeakKeyDictionary()
        )

    def add(self, unet: nn.Module) -> None:
        """Note that a UNet was loaded."""
        self._seen.add(unet)

    @property
    def unets(self) -> list[nn.Module]:
        """All of them."""
        return list(self._seen)

    @property
    def attachments(self) -> list[Attachment]:
        """What accelerates those that are accelerated."""
        return [each for each in map(accelerated, self.unets) if each is not None]

    def detach(self, unet: nn.Module, keep_compiling: bool = False) -> None:
        """Leave a UNet as it was found."""
        here = accelerated(unet)
        if here is not None:
            here.remove(keep_compiling)
            gc.collect()

    # -- those that could not be accelerated, for as long as they stay what they were

    def refuse(self, unet: nn.Module, reason: str) -> None:
        """Keep why a UNet was refused as it is now."""
        self._refused[unet] = reason, _parts(unet)

    def forgive(self, unet: nn.Module) -> None:
        """Let a UNet be tried again."""
        self._refused.pop(unet, None)

    def refusal(self, unet: nn.Module) -> str | None:
        """Return why a UNet was refused last, or None."""
        return self._refused.get(unet, (None,))[0]

    def stays_refused(self, unet: nn.Module) -> bool:
        """Return whether a UNet was refused as it is now.

        What was refused may have been the work of another extension, and only for one image.
        """
        return unet in self._refused and self._refused[unet][1] == _parts(unet)


def _parts(unet: nn.Module) -> object:
    named = unet.named_parameters()
    return [(name, p.shape, p.dtype, p.device) for name, p in named]
