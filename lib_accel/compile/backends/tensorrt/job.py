"""Builds the engines that the store lacks, one after the other, beside the making of images."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ....errors import ArtifactRejected
from ....store import ArtifactStore
from ...jobs import CompiledUnits, Job, Parts
from ...target import Target
from .child import build_into
from .engines import Wanted
from .load import load_engines


class EngineJob(Job):
    """Builds the engines of `wanted` that `store` lacks, then loads and checks all of them."""

    def __init__(
        self,
        target: Target,
        store: ArtifactStore,
        wanted: Mapping[str, Wanted],
    ):
        super().__init__(f"accel-tensorrt-{target.key[:8]}", target)
        self._store, self._wanted = store, wanted

    def work(self) -> CompiledUnits:
        """Build what is missing. Raises what `build_into` and `load_engines` do."""
        missing = {key: each for key, each in self._wanted.items() if not self._is_stored(key)}
        self.parts = parts = Parts({key: each.seconds for key, each in missing.items()})
        try:
            for key, wanted in missing.items():
                if not self._is_made_elsewhere(key):
                    self._build(key, wanted, parts)
        finally:
            self._store.give_back()
        return load_engines(self.target, self._store, self._wanted, self.report)

    def _is_stored(self, key: str) -> bool:
        try:
            return self._store.get(key) is not None
        except ArtifactRejected as error:
            if self._store.readonly:
                raise
            self.report(f"building again: {error}")
            return False  # `put` replaces it

    def _build(self, key: str, wanted: Wanted, parts: Parts[str]) -> None:
        began = time.monotonic()
        parts.begin(key)
        build_into(
            self._store,
            wanted,
            lambda: self.report(f"building the engine of {wanted.name}"),
            keep=self._wanted,
        )
        parts.finish(key, time.monotonic() - began)
        self.compiled += 1

    def _is_made_elsewhere(self, key: str) -> bool:
        """Return whether another machine has made the engine, after waiting for it."""
        while not self._store.begin(key):
            if self._store.contains(key):
                return True
            self.wait_for_another_machine()
        return False
