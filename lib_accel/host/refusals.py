"""Keeps which UNets could not be accelerated, and why, for as long as they stay what they were."""

from __future__ import annotations

import weakref

from torch import nn


class Refusals:
    """The UNets that were refused. It keeps none of them alive."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[nn.Module, tuple[str, object]] = (
            weakref.WeakKeyDictionary()
        )

    def add(self, unet: nn.Module, reason: str) -> None:
        """Keep why a UNet was refused as it is now."""
        self._known[unet] = reason, _parts(unet)

    def forget(self, unet: nn.Module) -> None:
        """Let a UNet be tried again."""
        self._known.pop(unet, None)

    def reason(self, unet: nn.Module) -> str | None:
        """Return why a UNet was refused last, or None."""
        return self._known.get(unet, (None,))[0]

    def stands(self, unet: nn.Module) -> bool:
        """Return whether a UNet was refused as it is now.

        What was refused may have been the work of another extension, and only for one image.
        """
        return unet in self._known and self._known[unet][1] == _parts(unet)


def _parts(unet: nn.Module) -> object:
    named = unet.named_parameters()
    return [(name, p.shape, p.dtype, p.device) for name, p in named]
