"""Ahead-of-time Inductor: child processes compile each unit once, the store keeps it."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from weakref import WeakValueDictionary

from ....config import Config
from ....errors import AccelError, ArtifactRejected
from ....model import specs
from ....store import Artifact, ArtifactStore, Entry
from ....store.summary import bytes_of
from ...accuracy import Verdict
from ...jobs import CompiledUnits, Job, Turns, stop
from ...target import Target
from ...toolchain import cannot_run, missing_tools
from ...units import UnitFn, describe
from .arrivals import Arrivals
from .job import CompileJob
from .load import load_unit, misfit

_log = logging.getLogger(__name__)


class Aoti:
    """The backend `aoti`. It owns the jobs that run and the code that this process has loaded.

    `workers` is the number of compiling processes of a job; by default the machine decides.
    """

    name = "aoti"
    channels_last = True
    optional = False
    cuda_only = False
    quick = False

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers
        self._jobs: WeakValueDictionary[tuple[Path, str], CompileJob] = WeakValueDictionary()
        self._starting = threading.Lock()
        self._turns = Turns()  # one architecture is compiled at a time
        # torch never unloads code, and the code holds no weights: loaded once, it is kept
        self._loaded: dict[tuple[str, str], UnitFn] = {}
        self._loading = threading.Lock()
        self._checked: set[str] = set()  # checksums of what came unchecked and has passed here

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        """Return why the code of `target` can be neither loaded nor compiled, or None."""
        machine = target.machine
        if machine.device_type not in ("cpu", "cuda"):
            return (
                f"AOTInductor is not tried on {machine.device_type}; "
                "it is known to work on cuda and cpu"
            )
        if why := cannot_run(machine, target.dtype):
            return why
        if not machine.packaging:
            needs = "2.9" if sys.platform == "win32" else "2.6"
            return (
                f"torch {machine.torch} cannot make AOTInductor packages with dynamic shapes; "
                f"that needs torch {needs} or later"
            )
        try:
            missing = _missing(_entries(target, store))
            if not missing:
                return None  # loading needs no compiler
            store.check()
            if not config.compile or store.readonly:
                return _not_stored(target, store, missing)
        except AccelError as e:
            return str(e)
        return _no_compiler(target)

    def make(self, target: Target, store: ArtifactStore) -> CompiledUnits | Job:
        """Load the code of `target` from `store`, or return the job that compiles what is missing.

        What came unchecked is checked by a job. One that makes the same already, for whichever
        model, is shared. Raises ArtifactRejected with the key of the artifact that must not serve.
        """
        found = _entries(target, store)
        missing = _missing(found)
        arrived = [e.artifact for e in found.values() if e and e.artifact]
        unchecked = any(map(Arrivals(target, store, self._checked).include, arrived))
        if not (missing or unchecked) and (code := self._load(target, store)) is not None:
            return code
        with self._starting:
            job = self._jobs.get((store.root, target.key))
            if job is None or job.done or job.cancelled:
                if foreign := [why for why in missing.values() if why]:
                    _log.warning("Compiling %d units again: %s", len(foreign), foreign[0])
                job = CompileJob(
                    target, store, self._load, self._turns, self._workers, checked=self._checked
                )
                self._jobs[store.root, target.key] = job
                job.start()
            return job

    def kept_bytes(self, target: Target, store: ArtifactStore) -> int | None:
        """Return what the units of `target` take in `store`; None where one of them is missing."""
        return bytes_of(map(store.entry, target.keys.values()))

    def keys(self, target: Target) -> list[str]:
        """Return the keys of the units."""
        served = target.machine.device_type in ("cpu", "cuda") and target.machine.packaging
        return [*target.keys.values()] if served else []

    def cancel(self) -> list[Target]:
        """Stop every job. Return what they were for."""
        return stop(self._jobs.values())

    def _load(self, target: Target, store: ArtifactStore) -> CompiledUnits | None:
        """Load every unit of `target`; return None where one is not in the store."""
        code = {}
        for unit, key in target.keys.items():
            artifact = store.get(key)
            if artifact is None:
                return None
            code[unit] = self._load_artifact(store, artifact, unit, target)
        return code

    def _load_artifact(
        self, store: ArtifactStore, artifact: Artifact, unit: specs.Spec, target: Target
    ) -> UnitFn:
        """Load one unit, or return what was loaded from the same bytes before."""
        if not (artifact.checksum in self._checked or passed(artifact)):
            raise ArtifactRejected(
                f"artifact {artifact.key[:12]} has no accuracy check for {describe(unit)}; "
                "it was never allowed to serve",
                artifact.key,
            )
        name = artifact.checksum, str(target.device)
        with self._loading:
            if name not in self._loaded:
                what = f"artifact {artifact.key[:12]}: {describe(unit)} does not load"
                folder = store.place(artifact)
                made_with = artifact.manifest.get("made_with", {})
                if why := misfit(folder, target.machine, made_with.get("cpu")):
                    raise ArtifactRejected(f"{what}: {why}", artifact.key)
                try:
                    self._loaded[name] = load_unit(folder, target.device)
                except RuntimeError as e:
                    raise ArtifactRejected(f"{what}: {e}", artifact.key) from e
            return self._loaded[name]


def _entries(target: Target, store: ArtifactStore) -> dict[str, Entry | None]:
    return {key: store.entry(key) for key in target.keys.values()}


def _missing(found: Mapping[str, Entry | None]) -> dict[str, str | None]:
    """Return the keys that the store lacks, or has from somebody else: then with the reason."""
    return {key: e and e.problem for key, e in found.items() if e is None or e.foreign}


def passed(artifact: Artifact) -> bool:
    """Return whether the artifact records a passed accuracy check."""
    try:
        verdict = Verdict.from_dict(artifact.verdict or {})
        return bool(verdict.compiled) and verdict.passed
    except (KeyError, TypeError, ValueError):  # numbers of other names, or too few of them
        return False


def _not_stored(target: Target, store: ArtifactStore, missing: Mapping[str, str | None]) -> str:
    """Return why compiled code that is missing cannot be made where nothing may be compiled."""
    some, all_units = len(missing), len(target.units)
    why = (
        f"{some} of {all_units} compiled units are missing and compiling is switched off: "
        "import them (python3 -m lib_accel store import) or allow compiling"
    )
    if store.readonly:
        why = (
            f"{some} of {all_units} compiled units are missing and the store {store.root} is "
            "read-only: import them with write access"
        )
    if foreign := [each for each in missing.values() if each]:
        return f"{why}; {foreign[0]}"
    found = (e.artifact.recipe for e in store.list() if e.artifact)
    others = [differs for recipe in found if (differs := target.incompatibility(recipe))]
    return f"{why}; code in the store was made for {others[-1]}" if others else why


def _no_compiler(target: Target) -> str | None:
    """Return which part of the compiler is missing, or None."""
    for what, advice in missing_tools(target.machine, cpp=True):
        return f"{what}; {advice}, or import an artifact made on a machine like this"
    return None
