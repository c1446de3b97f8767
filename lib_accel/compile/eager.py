"""No compiler: the clean UNet with SDPA, and CUDA graphs on top where there is a GPU."""

from __future__ import annotations

from ..config import Config
from ..store.store import ArtifactStore
from .jobs import CompiledUnits
from .target import Target

DEVICES = ("cpu", "cuda")


class Eager:
    """Has no code of its own: the clean UNet computes every layer."""

    name = "eager"

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        """Refuse devices on which the clean UNet was never run: the host's own forward serves there."""
        device = target.machine.device_type
        if device in DEVICES:
            return None
        return f"the clean UNet is not tried on {device}; it is known to work on {' and '.join(DEVICES)}"

    def make(self, target: Target, store: ArtifactStore) -> CompiledUnits:
        """Return no code."""
        return {}

    def kept_bytes(self, target: Target, store: ArtifactStore) -> int | None:
        """Return None: nothing is kept."""
        return None

    def cancel(self) -> None:
        """Do nothing: there are no jobs."""
