"""Backends for tests: their units need no compiler."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from torch import Tensor

from lib_accel.compile import session
from lib_accel.compile.units import UnitFn, UnitModule


class Stub:
    """A backend that serves at once. A subclass says what its units compute."""

    name = "stub"
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

    def cancel(self) -> None: ...


class Uncompiled(Stub):
    """A backend whose units are torch's own kernels."""

    name = "uncompiled"

    def code(self, unit: Any) -> UnitFn:
        return functools.partial(_compute, UnitModule(unit))


def _compute(module: UnitModule, given: list[Tensor]) -> Tensor:
    count = len(given) - len(module.names)
    return module(given[:count], given[count:])


def serve(monkeypatch: pytest.MonkeyPatch, backend: type[Stub]) -> None:
    """Let this backend stand in the place of the best one, with no call counted yet."""
    monkeypatch.setattr(session, "BACKENDS", (backend, *session.BACKENDS[1:]))
    monkeypatch.setattr(backend, "calls", 0)
