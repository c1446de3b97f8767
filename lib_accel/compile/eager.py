"""No compiler: the clean UNet with SDPA and channels-last activations, and CUDA graphs on top where there is a GPU."""

from __future__ import annotations

from ..config import Config
from ..store.store import ArtifactStore
from .jobs import Code, Job
from .machine import Target


class Eager:
    name = "eager"

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        return None

    def ready(self, target: Target, store: ArtifactStore) -> Code | None:
        return {}

    def start(self, target: Target, store: ArtifactStore) -> Job:
        raise AssertionError("eager code is always ready")
