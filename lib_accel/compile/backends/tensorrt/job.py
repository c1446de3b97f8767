"""Builds the engines that the store lacks, one after the other, beside the making of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ....store import ArtifactStore
from ...jobs import CompiledUnits, Job, Parts
from ...target import Target
from .child import build_into
from .engines import Wanted


class EngineJob(Job):
    """Builds the engines of `wanted` that `store` lacks; its result is what `load` returns."""

    def __init__(
        self,
        target: Target,
        store: ArtifactStore,
        wanted: Mapping[str, Wanted],
        load: Callable[[], CompiledUnits],
    ):
        super().__init__(f"accel-tensorrt-{target.key[:8]}", target)
        self._store, self._wanted, self._load = store, wanted, load

    def work(self) -> CompiledUnits:
        """Build what is missing, then load everything. Raises what `build_into` does."""
        missing = {key: each for key, each in self._wanted.items() if not self._store.contains(key)}
        self.parts = parts = Parts({key: each.seconds for key, each in missing.items()})
        for key, wanted in missing.items():
            began = time.monotonic()
            parts.begin(key)
            build_into(
                self._store,
                wanted,
                lambda name=wanted.name: self.report(f"building the engine of {name}"),
                keep=self._wanted,
            )
            parts.finish(key, time.monotonic() - began)
            self.compiled += 1
        self.report("preparing the engines for this card")
        return self._load()
