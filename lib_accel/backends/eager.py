"""No compiler: the clean UNet with SDPA and channels-last activations, and CUDA graphs on top where there is a GPU."""

from __future__ import annotations

from ..config import Config
from ..environment import Target
from ..jobs import Code, Job
from ..store import ArtifactStore


class Eager:
    name = "eager"

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        return None

    def ready(self, target: Target, store: ArtifactStore) -> Code | None:
        return {}

    def start(self, target: Target, store: ArtifactStore) -> Job:
        raise AssertionError("eager code is always ready")
