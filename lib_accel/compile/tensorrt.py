"""TensorRT through torch-tensorrt: its place. It says why it does not serve yet."""

from __future__ import annotations

from ..config import Config
from ..errors import BackendUnavailable
from ..store.store import ArtifactStore
from .jobs import Code, Job
from .machine import Target

_WHY_NOT = "this version of the extension makes no TensorRT engines yet; choose auto"


class TensorRT:
    name = "tensorrt"

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        return _WHY_NOT

    def ready(self, target: Target, store: ArtifactStore) -> Code | None:
        return None

    def start(self, target: Target, store: ArtifactStore) -> Job:
        raise BackendUnavailable(_WHY_NOT)
