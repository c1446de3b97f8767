"""Compile the missing units of a target in child processes, beside the making of images."""

from __future__ import annotations

import contextlib
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ....errors import ArtifactRejected, CompileFailed, NoRoom, StoreError
from ....model import specs
from ....store import ArtifactStore, LockBusy
from ....store.privacy import OTHER_TEMP, require_private
from ....store.private_folder import temporary_folder
from ...accuracy import Verdict
from ...jobs import CompiledUnits, Job, Parts
from ...machine import has_room, waits_for
from ...target import Target
from ...units import describe
from ..process_tree import remove
from ..times import Times
from .worker_environment import made_with
from .worker_process import (
    Answer,
    Results,
    Worker,
    free_for_workers,
    worker_bytes,
    worker_count,
)

# as torch and the system word it
_NO_ROOM = ("out of memory", "No space left on device", "Disk quota exceeded")

STALL_S = 900.0
"""A worker that is silent for this long hangs: one unit takes 10 to 60 s."""

HEADERS_FROM = 6
"""So many units pay for compiling torch's C++ headers first: on a CPU that takes 11 s of processor
time, and each unit then 2 s less."""

QUIET_S = 10.0
"""How long there must be room for a worker again after memory was given up: an image takes it in
several pieces."""

Loader = Callable[[Target, ArtifactStore], CompiledUnits | None]
"""Loads every unit of a target from the store; None where one is missing."""


class CompileJob(Job):
    """Puts every unit of a target that the store lacks into it, each as soon as it is checked.

    The result is the code of the whole target, from `load`. `turn` is held while units are
    compiled, so that architectures are compiled one after the other.
    """

    def __init__(
        self,
        target: Target,
        store: ArtifactStore,
        load: Loader,
        turn: threading.Lock,
        workers: int | None = None,
        stall_s: float = STALL_S,
    ):
        super().__init__(f"accel-compile-{target.key[:8]}", target)
        self.store, self.stall_s = store, stall_s
        self.workers = workers or worker_count(target.device)
        self._load, self._turn = load, turn
        self._pool: list[Worker] = []
        self._given_up = threading.Event()  # of `_pool`: it has ended for want of video memory
        self._times = Times("aoti", target.device.type)

    def work(self) -> CompiledUnits:
        """Compile what is missing and load everything."""
        with self._only_process():
            try:
                return self._complete()
            except ArtifactRejected as e:
                if e.key is None:
                    raise
                self.store.discard(e.key, str(e))  # it was stored before; compile it anew, once
                return self._complete()
            finally:
                self.store.give_back()

    def _complete(self) -> CompiledUnits:
        if self._missing():
            with self._only_architecture():
                while missing := self._missing():  # others may have made some in the meantime
                    if any(self.store.begin(self.target.keys[unit]) for unit in missing):
                        self._compile(missing, self._wait_for_memory())
                    elif self._missing():  # not all were fetched just now
                        self.wait_for_another_machine()
        code = self._load(self.target, self.store)
        if code is None:
            raise StoreError(
                f"a compiled unit was removed from {self.store.root} before the last one was made; "
                "expected all of them to stay; raise the store's limit or try again"
            )
        return code

    @contextlib.contextmanager
    def _only_process(self) -> Iterator[None]:
        """Hold the target's lock; stay cancellable while another process compiles the target."""
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(self.store.lock(self.target.key, timeout=0.5))
                    break
                except LockBusy:
                    self.report("another process is compiling this")
            yield

    @contextlib.contextmanager
    def _only_architecture(self) -> Iterator[None]:
        """Wait for the turn: workers take memory from images, and architectures share units."""
        while not self._turn.acquire(timeout=0.5):
            self.report("another architecture is compiled first")
        try:
            yield
        finally:
            self._turn.release()

    def _missing(self) -> list[specs.Spec]:
        return [unit for unit in self.target.units if not self._is_stored(unit)]

    def _is_stored(self, unit: specs.Spec) -> bool:
        try:
            return self.store.get(self.target.keys[unit]) is not None
        except ArtifactRejected:
            return False  # `put` replaces it

    def give_up_memory(self) -> bool:
        """End the workers where they take video memory; `work` starts others later."""
        pool = list(self._pool) if self.target.device.type == "cuda" else []
        if pool:
            self._given_up.set()
        for worker in pool:
            worker.kill()
        return bool(pool)

    def _wait_for_memory(self) -> int:
        """Wait until there is video memory for a worker; return for how many, `workers` at most."""
        device = self.target.device
        if device.type != "cuda":
            return self.workers
        needed, since = worker_bytes(self.target), None
        while True:
            free, now = free_for_workers(device), time.monotonic()
            since = (since or now) if free >= needed else None
            quiet = QUIET_S if self._given_up.is_set() else 0.0
            self.waits_for_memory = since is None or now - since < quiet
            if not self.waits_for_memory:
                return min(self.workers, free // needed)
            self.parts = None
            self.report(waits_for(free, needed))
            self._cancelled.wait(0.5)

    def _compile(self, units: list[specs.Spec], workers: int) -> None:
        """Compile `units` in worker processes whose files are removed at the end.

        It ends early where video memory is given up.
        """
        try:
            folder = Path(tempfile.mkdtemp(prefix="accel-compile-", dir=temporary_folder()))
        except OSError as e:
            raise NoRoom(
                f"there is no folder for temporary files: {e}; "
                "expected one that can be written (TMPDIR, TEMP)"
            ) from e
        results: Results = queue.SimpleQueue()
        pool = self._pool = []
        self._given_up.clear()
        count = min(workers, len(units))
        threads = max(1, (os.cpu_count() or 1) // count)
        try:
            # code is tried there before it is stored
            require_private(folder, folder=True, remedy=OTHER_TEMP)
            pool.extend(Worker(folder, results, threads, self.target.machine) for _ in range(count))
            self._drive(units, pool, results)
        except OSError as e:
            raise NoRoom(
                f"cannot write to {folder}: {e}; expected room for about 1 GB of temporary files"
            ) from e
        finally:
            self._pool = []
            _clean_up(pool, folder)

    def _drive(self, units: list[specs.Spec], pool: list[Worker], results: Results) -> None:
        """Give each unit to the next free worker, and store what comes back."""
        parts = self.parts = Parts({u: self._times.expected(u) for u in units}, len(pool))
        waiting, heard = parts.longest_first, time.monotonic()
        headers = len(units) >= HEADERS_FROM
        for worker in pool:
            self._give_next(worker, waiting, headers)
        while busy := [worker for worker in pool if worker.unit is not None]:
            if not has_room(self.target.device, 0):
                self.give_up_memory()
            if self._given_up.is_set():
                return
            names = ", ".join(describe(worker.unit) for worker in busy if worker.unit)
            self.report(f"compiling {names}")
            try:
                worker, answer = results.get(timeout=0.5)
            except queue.Empty:
                if time.monotonic() - heard > self.stall_s:
                    raise CompileFailed(
                        f"the compiler hangs: no answer for {self.stall_s:.0f} s at {names}; "
                        "it was ended"
                    ) from None
                continue
            heard = time.monotonic()
            if self._finished(worker, answer):
                self._give_next(worker, waiting, headers)

    def _give_next(self, worker: Worker, waiting: list[specs.Spec], headers: bool) -> None:
        """Give the worker the first unit that nobody else has stored, or is making."""
        assert self.parts is not None
        while waiting:
            unit = waiting.pop(0)
            stored = self._is_stored(unit)
            if not stored and self.store.begin(self.target.keys[unit]):
                self.parts.begin(unit, 0.0 if worker.given else self._times.start_s)
                worker.give(unit, self.target, headers)
                return
            if stored or self._is_stored(unit):  # else another machine is making it
                self.parts.finish(unit)

    def _finished(self, worker: Worker, answer: Answer | None) -> bool:
        """Store the worker's unit if it is done, and return whether it is."""
        unit = worker.unit
        if unit is None:
            return False
        name = describe(unit)
        if answer is None and self._given_up.is_set():
            return False
        if answer is None:
            raise CompileFailed(
                f"the compiler process ended (exit {worker.exit_code()}) at {name}: "
                f"{worker.log_tail()}"
            )
        if "error" in answer:
            text = answer["error"]
            failure = NoRoom if any(words in text for words in _NO_ROOM) else CompileFailed
            raise failure(f"{name} does not compile: {text}")
        if not answer.get("ok"):
            return False  # it only reports what it is doing
        verdict = Verdict.from_dict(answer["verdict"])
        if not verdict.passed:
            raise ArtifactRejected(
                f"the compiled {name} is inaccurate: {verdict}; it was discarded"
            )
        self.store.put(
            self.target.recipe(unit),
            worker.files(),
            {**verdict.to_dict(), "seconds": round(answer["seconds"], 1)},
            keep=self.target.keys.values(),
            name=self.target.name,
            made_with={**made_with(self.target.machine), "options": answer["options"]},
        )
        assert self.parts is not None
        self.parts.finish(unit, answer["seconds"])
        self._times.add(unit, answer["seconds"], first=worker.given == 1)
        worker.take_back()
        self.compiled += 1
        return True


def _clean_up(pool: list[Worker], folder: Path) -> None:
    """End the workers and delete their files.

    One worker lives until the files are gone: should this process be killed in the meantime, that
    worker deletes the rest.
    """
    last = next((worker for worker in reversed(pool) if worker.exit_code() is None), None)
    for worker in pool:
        if worker is not last:
            worker.kill()
    if last is not None:
        remove(folder, patience_s=0)
        last.kill()
    remove(folder)
