"""The protocol of a backend: one way to make fast code for a target."""

from __future__ import annotations

from typing import Protocol

from ..config import Config
from ..store.store import ArtifactStore
from .jobs import CompiledUnits, Job
from .target import Target


class Backend(Protocol):
    """A backend lives as long as its session and keeps the code it has loaded or made."""

    name: str

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        """Say in one sentence why this backend cannot serve `target` and what to do; None where it can."""
        ...

    def make(self, target: Target, store: ArtifactStore) -> CompiledUnits | Job:
        """Return the code that is at hand, else a started job whose result is the code.

        Raises ArtifactRejected for stored code that must not serve, StoreError where the store cannot be read.
        """
        ...

    def kept_bytes(self, target: Target, store: ArtifactStore) -> int | None:
        """Return the size on disk of the target's code in `store`, or None where it is not complete there.

        Raises StoreError where the store cannot be read.
        """
        ...

    def cancel(self) -> None:
        """Stop every job of this backend."""
        ...
