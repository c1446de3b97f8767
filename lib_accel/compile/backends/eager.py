"""The `eager` backend: nothing is compiled."""

from __future__ import annotations

from ...config import Config
from ...store.store import ArtifactStore
from ..jobs import CompiledUnits
from ..target import Target


class Eager:
    """The backend without a compiler: the clean UNet computes every layer."""

    name = "eager"
    channels_last = True
    optional = False
    cuda_only = False
    quick = False
    devices = ("cpu", "cuda")

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        """Refuse devices on which the clean UNet was never run."""
        device = target.machine.device_type
        if device in self.devices:
            return None
        tried = " and ".join(self.devices)
        return f"the clean UNet is not tried on {device}; it is known to work on {tried}"

    def make(self, target: Target, store: ArtifactStore) -> CompiledUnits:
        """Return no units."""
        return {}

    def kept_bytes(self, target: Target, store: ArtifactStore) -> int | None:
        """Return None: nothing is stored."""
        return None

    def keys(self, target: Target) -> tuple[()]:
        """Return none: nothing is kept in the store."""
        return ()

    def cancel(self) -> list[Target]:
        """Do nothing: there are no jobs."""
        return []
