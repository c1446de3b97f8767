"""Ahead-of-time Inductor: compiled once by child processes, kept in the store, loaded in milliseconds ever after."""

from __future__ import annotations

import sys

from ...config import Config
from ...errors import AccelError
from ...store.store import ArtifactStore
from ..jobs import CompiledUnits, Job
from ..target import Target
from ..toolchain import missing_tools
from .job import cancel_jobs, compile_job, load_artifact


class Aoti:
    name = "aoti"

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        machine = target.machine
        if machine.device_type not in ("cpu", "cuda"):
            return f"AOTInductor is not tried on {machine.device_type}; it is known to work on cuda and cpu"
        if not machine.packaging:
            needs = "2.9" if sys.platform == "win32" else "2.6"
            return f"torch {machine.torch} cannot make AOTInductor packages with dynamic shapes; that needs torch {needs} or later"
        try:
            if store.contains(target.key):
                return None  # made elsewhere or earlier: loading needs no compiler
            if not store.readonly:
                store.check()
        except AccelError as e:
            return str(e)
        if not config.compile:
            return "no artifact is at hand and compiling is switched off; import one (python -m lib_accel store import) or allow compiling"
        if store.readonly:
            return f"no artifact is at hand and the store {store.root} is read-only; import one where it can be written"
        if missing := missing_tools(machine, cpp=True):
            what, advice = missing[0]
            return f"{what}; {advice}, or import an artifact made on a machine like this"
        return None

    def make(self, target: Target, store: ArtifactStore) -> CompiledUnits | Job:
        artifact = store.get(target.key)
        return load_artifact(artifact, target) if artifact else compile_job(target, store)

    def kept_bytes(self, target: Target, store: ArtifactStore) -> int | None:
        entry = store.entry(target.key)
        return entry.bytes if entry else None

    def cancel(self) -> None:
        cancel_jobs()
