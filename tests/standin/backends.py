"""Backends for tests: their units need no compiler."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
from torch import Tensor

from lib_accel.compile import session
from lib_accel.compile.jobs import CompiledUnits, Job, Parts, stop
from lib_accel.compile.target import Target
from lib_accel.compile.units import UnitFn, UnitModule
from lib_accel.errors import CompileFailed


class Stub:
    """A backend that serves at once. A subclass says what its units compute."""

    name = "stub"
    channels_last = True
    optional = False
    cuda_only = False
    quick = False
    calls = 0

    def why_not(self, *_: Any) -> None:
        return None

    def make(self, target: Any, store: Any) -> Any:
        return {unit: self.code(unit) for unit in target.units}

    def code(self, unit: Any) -> UnitFn:
        """Return what computes a unit."""
        raise NotImplementedError

    def kept_bytes(self, *_: Any) -> None:
        return None

    def cancel(self) -> list[Any]:
        return []


class Uncompiled(Stub):
    """A backend whose units are torch's own kernels."""

    name = "uncompiled"

    def code(self, unit: Any) -> UnitFn:
        return functools.partial(_compute, UnitModule(unit))


def _compute(module: UnitModule, given: list[Tensor]) -> Tensor:
    count = len(given) - len(module.names)
    return module(given[:count], given[count:])


class Compiler(Uncompiled):
    """A backend with a store and a compiler that is done when a test sets `may_finish`."""

    name = "compiler"
    may_finish: threading.Event
    stored: bool
    failure = ""

    def __init__(self) -> None:
        self.jobs: list[CompilerJob] = []

    def make(self, target: Target, store: Any) -> CompiledUnits | Job:
        if type(self).stored:
            return super().make(target, store)
        running = [job for job in self.jobs if not (job.done or job.cancelled)]
        if not running:
            self.jobs.append(CompilerJob(self, target))
            self.jobs[-1].start()
        return self.jobs[-1]

    def kept_bytes(self, *_: Any) -> int | None:
        return 1 if type(self).stored else None

    def cancel(self) -> list[Target]:
        return stop(self.jobs)


class CompilerJob(Job):
    def __init__(self, backend: Compiler, target: Target):
        super().__init__("test", target)
        self.backend, self.kind = backend, type(backend)

    def work(self) -> CompiledUnits:
        self.parts = Parts(dict.fromkeys(self.target.units, 10.0))
        while not self.kind.may_finish.wait(0.01):
            self.report("compiling")
        if self.kind.failure:
            raise CompileFailed(self.kind.failure)
        self.kind.stored = True
        return {unit: self.backend.code(unit) for unit in self.target.units}


class Quick(Compiler):
    """A backend whose compiler takes seconds: it serves while `Compiler` is at work."""

    name = "quick"
    quick = True


def compile_slowly(monkeypatch: pytest.MonkeyPatch, *more: type[Compiler]) -> type[Compiler]:
    """Let `Compiler` and `more` be the best backends, with nothing stored; no other compiles."""
    for kind in (Compiler, *more):
        monkeypatch.setattr(kind, "may_finish", threading.Event(), raising=False)
        monkeypatch.setattr(kind, "stored", False, raising=False)
        monkeypatch.setattr(kind, "failure", "")
    monkeypatch.setattr(session, "BACKENDS", (Compiler, *more, session.Jit, session.Eager))
    return Compiler


def serve(monkeypatch: pytest.MonkeyPatch, backend: type[Stub]) -> None:
    """Let this backend stand in the place of the best one, with no call counted yet."""
    monkeypatch.setattr(session, "BACKENDS", (backend, session.Jit, session.Eager))
    monkeypatch.setattr(backend, "calls", 0)
