"""Compile an artifact in child processes, off the caller's path, once per key on this machine."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from ...errors import ArtifactRejected, CompileFailed, NoRoom, StoreError
from ...model import specs
from ...store.store import Artifact, ArtifactStore, LockBusy
from ..jobs import CompiledUnits, Job
from ..target import Target
from ..units import UnitFn, describe, unit_key
from ..verify import Verdict
from .process_tree import remove
from .unit import load_unit
from .worker_process import Worker, worker_count

_NO_ROOM = (
    "out of memory",
    "No space left on device",
    "Disk quota exceeded",
)  # as torch and the system put it

STALL_S = 900.0
"""A worker that says nothing for this long hangs: one unit takes 10 to 60 s."""


_running: WeakValueDictionary[tuple[Path, str], CompileJob] = WeakValueDictionary()
_turn, _starting = threading.Lock(), threading.Lock()


def compile_job(target: Target, store: ArtifactStore) -> CompileJob:
    """The job that is making this already, for whichever model, else a new one. Started."""
    with _starting:
        job = _running.get((store.root, target.key))
        if job is None or job.done or job.cancelled:
            job = _running[store.root, target.key] = CompileJob(target, store)
            job.start()
        return job


def cancel_jobs() -> None:
    for job in list(_running.values()):
        job.cancel()


class CompileJob(Job):
    """Makes the target's artifact and puts it into the store. The result is its code, loaded."""

    def __init__(
        self,
        target: Target,
        store: ArtifactStore,
        workers: int | None = None,
        stall_s: float = STALL_S,
    ):
        super().__init__(f"accel-compile-{target.key[:8]}", target)
        self.store, self.stall_s = store, stall_s
        self.workers = workers or worker_count(target.device)

    def work(self) -> CompiledUnits:
        with self._only_one():
            artifact = self.store.get(
                self.target.key
            )  # another process may have made it while we waited
            if artifact is None:
                with self._in_turn():
                    artifact = self._make()
            return load_artifact(artifact, self.target)

    @contextlib.contextmanager
    def _only_one(self) -> Iterator[None]:
        """Hold the key's lock, staying cancellable while another process compiles."""
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(self.store.lock(self.target.key, timeout=0.5))
                    break
                except LockBusy:
                    self.report("another process is compiling this", None)
            yield

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One architecture at a time: workers take memory from images, and the next one may take units over."""
        while not _turn.acquire(timeout=0.5):
            self.report("another architecture is compiled first", None)
        try:
            yield
        finally:
            _turn.release()

    def _make(self) -> Artifact:
        try:
            folder = Path(tempfile.mkdtemp(prefix="accel-compile-"))
        except OSError as e:
            raise NoRoom(
                f"there is no folder for temporary files: {e}; expected one that can be written (TMPDIR, TEMP)"
            ) from e
        try:
            files, checks = self._taken_over(folder)
            todo = [u for u in self.target.units if unit_key(u) not in checks]
            if todo:
                checks |= self._compile(todo, folder, files)
            self.report("storing", 0.99)
            return self.store.put(
                self.target.key, self.target.recipe, files, verdict={"units": checks}
            )
        except OSError as e:
            raise NoRoom(
                f"cannot write to {folder}: {e}; expected room for about 1 GB of temporary files"
            ) from e
        finally:
            remove(folder)

    def _taken_over(self, folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
        """Units that another artifact for this machine already has (SD1 and SDXL share most residual blocks)."""
        files: dict[str, Path] = {}
        checks: dict[str, Any] = {}
        wanted = {unit_key(u) for u in self.target.units}
        for entry in self.store.list():
            if entry.artifact is None or self.target.foreign(entry.artifact.recipe):
                continue
            try:
                artifact = self.store.get(entry.key)
            except (ArtifactRejected, StoreError):
                continue  # a damaged neighbour is the store's to report
            if artifact is None:
                continue
            verdicts = (artifact.verdict or {}).get("units", {})
            for name in wanted & verdicts.keys() - checks.keys():
                if f"{name}.pt2" in artifact.files:
                    files[f"{name}.pt2"] = Path(shutil.copy(artifact.file(f"{name}.pt2"), folder))
                    checks[name] = verdicts[name]
        return files, checks

    def _compile(
        self, todo: list[specs.Spec], folder: Path, files: dict[str, Path]
    ) -> dict[str, Any]:
        """Give each unit to the next free worker; returns the checks by unit."""
        results: queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        count = min(self.workers, len(todo))
        pool: list[Worker] = []
        try:
            threads = max(1, (os.cpu_count() or 1) // count)
            pool.extend(Worker(folder, results, threads, self.target.machine) for _ in range(count))
            return self._drive(list(todo), pool, results, folder, files)
        finally:
            for worker in pool:
                worker.kill()

    def _drive(
        self,
        waiting: list[specs.Spec],
        pool: list[Worker],
        results: queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]],
        folder: Path,
        files: dict[str, Path],
    ) -> dict[str, Any]:
        total, checks, heard = len(waiting), {}, time.monotonic()
        for worker in pool:
            worker.give(waiting.pop(0), self.target)
        while len(checks) < total:
            busy = ", ".join(describe(w.layer) for w in pool if w.layer is not None)
            self.report(f"compiling {busy}", len(checks) / total)
            try:
                worker, answer = results.get(timeout=0.5)
            except queue.Empty:
                if time.monotonic() - heard > self.stall_s:
                    raise CompileFailed(
                        f"the compiler hangs: no answer for {self.stall_s:.0f} s at {busy}; it was ended"
                    ) from None
                continue
            heard = time.monotonic()
            layer = worker.layer
            assert layer is not None
            if answer is None:
                raise CompileFailed(
                    f"the compiler process ended (exit {worker.exit_code()}) at {describe(layer)}: {worker.log_tail()}"
                )
            if "error" in answer:
                failure = (
                    NoRoom if any(words in answer["error"] for words in _NO_ROOM) else CompileFailed
                )
                raise failure(f"{describe(layer)} does not compile: {answer['error']}")
            if not answer.get("ok"):
                continue  # a stage line
            checks[unit_key(layer)] = self._verdict(layer, answer)
            files[f"{unit_key(layer)}.pt2"] = folder / f"{unit_key(layer)}.pt2"
            self.compiled += 1
            worker.layer = None
            if waiting:
                worker.give(waiting.pop(0), self.target)
        return checks

    @staticmethod
    def _verdict(layer: specs.Spec, answer: dict[str, Any]) -> dict[str, Any]:
        verdict = Verdict.from_dict(answer["verdict"])
        if not verdict.passed:
            raise ArtifactRejected(
                f"the compiled {describe(layer)} is inaccurate: {verdict}; it was discarded"
            )
        return {**verdict.to_dict(), "seconds": round(answer["seconds"], 1)}


def load_artifact(artifact: Artifact, target: Target) -> CompiledUnits:
    """Load every unit of the target. Raises ArtifactRejected when the artifact is for another machine or lacks a unit, StoreError
    when there is no room to unpack it."""
    differs = target.foreign(artifact.recipe)
    if differs:
        raise ArtifactRejected(
            f"artifact {artifact.key[:12]} was made for {differs}; compile it on this machine"
        )
    code = {}
    for layer in target.units:
        verdict = (artifact.verdict or {}).get("units", {}).get(unit_key(layer))
        if not verdict:
            raise ArtifactRejected(
                f"artifact {artifact.key[:12]} has no accuracy check for {describe(layer)}; it was never allowed to serve"
            )
        name = f"{unit_key(layer)}.pt2"
        if name not in artifact.files:
            raise ArtifactRejected(
                f"artifact {artifact.key[:12]} has no code for {describe(layer)}; compile it again"
            )
        try:
            code[layer] = _load(artifact, name, target.device)
        except (
            RuntimeError,
            KeyError,
            zipfile.BadZipFile,
        ) as e:  # not StoreError: a full disk is no fault of the artifact
            raise ArtifactRejected(
                f"artifact {artifact.key[:12]}: {describe(layer)} does not load: {e}"
            ) from e
    return code


_loaded: dict[tuple[str, str], UnitFn] = {}


def _load(artifact: Artifact, name: str, device: torch.device) -> UnitFn:
    """Load a unit, or what was loaded from the same bytes before: torch never unloads code, and it holds no weights."""
    path = artifact.file(name)
    key = (artifact.manifest["files"][name]["sha256"], str(device))
    if key not in _loaded:
        _loaded[key] = load_unit(path, device)
    return _loaded[key]
