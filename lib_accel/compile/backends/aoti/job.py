"""Compile the missing units of a target in child processes, beside the making of images."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

from ....errors import ArtifactRejected, CompileFailed, NoRoom, StoreError
from ....model import specs
from ....store import Artifact, ArtifactStore, LockBusy
from ...accuracy import Verdict
from ...jobs import CompiledUnits, Job, Parts, Turns
from ...machine import has_room, waits_for
from ...target import Target
from ...units import describe
from ..times import Times
from .arrivals import NO_ROOM, Arrivals, discard
from .pool import workers_in_pool
from .worker_environment import HERE, Elsewhere, made_with
from .worker_process import (
    Answer,
    Results,
    Worker,
    free_for_workers,
    worker_bytes,
    worker_count,
)

STALL_S = 900.0
"""A worker that is silent for this long hangs: one unit takes 10 to 60 s."""

QUIET_S = 10.0
"""How long there must be room for a worker again after memory was given up: an image takes it in
several pieces."""

Loader = Callable[[Target, ArtifactStore], CompiledUnits | None]
"""Loads every unit of a target from the store; None where one is missing."""


class CompileJob(Job):
    """Puts every unit of a target that the store lacks into it, each as soon as it is checked.

    What is there unchecked is checked as well. Where nothing is missing at the start, nothing is
    compiled: a unit that is refused then ends the job. The result is the code of the whole target,
    from `load`. `turns` lets architectures be compiled one after the other. `checked`: as for
    `Arrivals`.
    """

    def __init__(
        self,
        target: Target,
        store: ArtifactStore,
        load: Loader,
        turns: Turns,
        workers: int | None = None,
        stall_s: float = STALL_S,
        checked: set[str] | None = None,
        elsewhere: Elsewhere = HERE,
    ):
        super().__init__(f"accel-compile-{target.key[:8]}", target)
        self.store, self.stall_s = store, stall_s
        self.workers = workers or worker_count(target.device)
        self._load, self._turns, self._elsewhere = load, turns, elsewhere
        self._arrivals = Arrivals(target, store, set() if checked is None else checked)
        self._compiles = True
        self._pool: list[Worker] = []
        self._given_up = threading.Event()  # of `_pool`: it has ended for want of video memory
        self._times = Times("aoti", target.device.type)

    def work(self) -> CompiledUnits:
        """Compile what is missing and load everything."""
        with self._only_process():
            try:
                self._compiles = any(self._stored(unit) is None for unit in self.target.units)
                return self._complete()
            except ArtifactRejected as e:
                if e.key is None or not self._compiles:
                    raise
                self.store.discard(e.key, str(e))  # it was stored before; compile it anew, once
                return self._complete()
            finally:
                self.store.give_back()

    def _complete(self) -> CompiledUnits:
        if self._missing():
            # workers take memory from images, and architectures share units
            with self._turns.turn(lambda: self.report("waiting until other code is compiled")):
                while missing := self._missing():  # others may have made some in the meantime
                    if any(map(self._can_begin, missing)):
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
            while not self.store.readonly:
                try:
                    held.enter_context(self.store.lock(self.target.key, timeout=0.5))
                    break
                except LockBusy:
                    self.report("another process is compiling this")
            yield

    def _missing(self) -> list[specs.Spec]:
        return [unit for unit in self.target.units if not self._is_ready(unit)]

    def _stored(self, unit: specs.Spec) -> Artifact | None:
        try:
            return self.store.get(self.target.keys[unit])
        except ArtifactRejected:
            return None  # `put` replaces it

    def _is_ready(self, unit: specs.Spec) -> bool:
        artifact = self._stored(unit)
        return artifact is not None and not self._awaits_check(artifact)

    def _can_begin(self, unit: specs.Spec) -> bool:
        return self._stored(unit) is not None or self.store.begin(self.target.keys[unit])

    def _awaits_check(self, artifact: Artifact) -> bool:
        return self._elsewhere.checks and self._arrivals.include(artifact)

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
        given = self.target, len(units), workers, self._elsewhere
        with workers_in_pool(*given) as (pool, results):
            self._pool = pool
            self._given_up.clear()
            try:
                self._drive(units, pool, results)
            finally:
                self._pool = []

    def _drive(self, units: list[specs.Spec], pool: list[Worker], results: Results) -> None:
        """Give each unit to the next free worker, and store what comes back."""
        parts = self.parts = Parts({u: self._times.expected(u) for u in units}, len(pool))
        waiting, heard = parts.longest_first, time.monotonic()
        for worker in pool:
            self._give_next(worker, waiting)
        while busy := [worker for worker in pool if worker.unit is not None]:
            if not has_room(self.target.device, 0):
                self.give_up_memory()
            if self._given_up.is_set():
                return
            names = ", ".join(describe(worker.unit) for worker in busy if worker.unit)
            doing = "checking" if all(worker.artifact for worker in busy) else "compiling"
            self.report(f"{doing} {names}")
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
                self._give_next(worker, waiting)

    def _give_next(self, worker: Worker, waiting: list[specs.Spec]) -> None:
        """Give the worker the first unit that nobody else has stored, or is making."""
        assert self.parts is not None
        while waiting:
            unit = waiting.pop(0)
            artifact = self._stored(unit)
            if artifact is not None and self._awaits_check(artifact):
                try:
                    code = self._arrivals.place(artifact)
                except ArtifactRejected as error:
                    self._refuse(error)
                else:
                    self.parts.begin(unit)
                    worker.check(unit, self.target, artifact, code)
                    return
            elif artifact is not None or not self.store.begin(self.target.keys[unit]):
                if artifact is not None or self._is_ready(unit):  # else another machine makes it
                    self.parts.finish(unit)
                continue
            self.parts.begin(unit, 0.0 if worker.given else self._times.start_s)
            worker.give(unit, self.target)
            return

    def _refuse(self, error: ArtifactRejected) -> None:
        """Remove unchecked code that must not serve, to compile it; else end the job."""
        if not self._compiles:
            raise error
        discard(self.store, error)

    def _finished(self, worker: Worker, answer: Answer | None) -> bool:
        """Store the worker's unit if it is done, and return whether it is."""
        unit = worker.unit
        if unit is None or (answer is None and self._given_up.is_set()):
            return False
        name = describe(unit)
        if worker.artifact is not None:
            return self._checked(worker, answer)
        if answer is None:
            raise CompileFailed(
                f"the compiler process ended (exit {worker.exit_code()}) at {name}: "
                f"{worker.log_tail()}"
            )
        if "error" in answer:
            text = answer["error"]
            failure = NoRoom if any(words in text for words in NO_ROOM) else CompileFailed
            raise failure(f"{name} does not compile: {text}")
        if not answer.get("ok"):
            return False  # it only reports what it is doing
        self._put(unit, worker, answer)
        assert self.parts is not None
        self.parts.finish(unit, answer["seconds"])
        self._times.add(unit, answer["seconds"], first=worker.given == 1)
        worker.take_back()
        self.compiled += 1
        return True

    def _put(self, unit: specs.Spec, worker: Worker, answer: Answer) -> None:
        measured = None
        if self._elsewhere.checks:
            verdict = Verdict.from_dict(answer["verdict"])
            if not verdict.passed:
                raise ArtifactRejected(
                    f"the compiled {describe(unit)} is inaccurate: {verdict}; it was discarded"
                )
            measured = {**verdict.to_dict(), "seconds": round(answer["seconds"], 1)}
        self.store.put(
            self.target.recipe(unit),
            worker.files(),
            measured,
            keep=self.target.keys.values(),
            name=self.target.name,
            made_with={**made_with(self.target.machine), "options": answer["options"]},
            origin=self._elsewhere.origin,
        )

    def _checked(self, worker: Worker, answer: Answer | None) -> bool:
        """Take the answer of a worker that checks unchecked code; return whether it is free."""
        assert self.parts is not None
        try:
            if not self._arrivals.finish(worker, answer):
                return False
            self.parts.finish(worker.unit)
        except ArtifactRejected as error:
            self._refuse(error)  # it is compiled in the next pool
        worker.take_back()
        if answer is None:
            self._given_up.set()  # that worker has ended: the next pool goes on
        return True
