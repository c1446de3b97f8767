"""The protocol of a backend."""

from __future__ import annotations

from typing import Protocol

from ..config import Config
from ..store.store import ArtifactStore
from .jobs import Code, Job
from .machine import Target


class Backend(Protocol):
    name: str

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        """A sentence saying why this backend cannot serve the target here and what to do, or None where it can."""
        ...

    def ready(self, target: Target, store: ArtifactStore) -> Code | None:
        """Code that is at hand without compiling. Raises ArtifactRejected for an artifact that must not serve."""
        ...

    def start(self, target: Target, store: ArtifactStore) -> Job:
        """Begin making the code beside the caller; the job's result is the code."""
        ...
