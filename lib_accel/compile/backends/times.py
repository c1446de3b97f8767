"""How long units take to compile: as in earlier runs on this machine, else by their weight."""

from __future__ import annotations

import contextlib

from ...config import own_times_file
from ...model import specs
from ...store.files import read_json, replace_json

START_S = 40.0
"""What the first unit of a process takes on top: torch prepares the compiler."""

LEAST_FACTOR = 0.05
"""A unit that took less of its time than this was in a cache of torch: nothing was compiled."""

MOST_BYTES = 64 * 1024

_START = "start"


class Times:
    """The times of one backend on one type of device, kept in the user's profile.

    For each kind of unit the file holds how many times longer than expected it took. It is a
    convenience: where it cannot be read or written, estimates are rougher, and nothing else.
    """

    def __init__(self, backend: str, device_type: str):
        self._prefix = f"{backend} {device_type} "
        self._known = _read()

    @property
    def start_s(self) -> float:
        """Seconds that the first unit of a process is expected to take on top."""
        return START_S * self._factor(_START)

    def expected(self, unit: specs.Spec) -> float:
        """Return the seconds that this unit is expected to take."""
        return _weight_s(unit) * self._factor(type(unit).__name__)

    def add(self, unit: specs.Spec, seconds: float, first: bool) -> None:
        """Keep how long a unit took. `first`: it was the first one of its process."""
        if first:
            self._keep(_START, max(seconds - self.expected(unit), 1.0) / START_S)
        else:
            self._keep(type(unit).__name__, seconds / _weight_s(unit))

    def _factor(self, kind: str) -> float:
        known = {k: v for k, v in self._known.items() if k.startswith(self._prefix)}
        mean = sum(known.values()) / len(known) if known else 1.0
        return known.get(self._prefix + kind, mean)

    def _keep(self, kind: str, factor: float) -> None:
        if factor < LEAST_FACTOR:
            return
        name, now = self._prefix + kind, _read()  # another process may have written it
        now[name] = (now[name] + factor) / 2 if name in now else factor
        self._known = now
        _write(now)


def _weight_s(unit: specs.Spec) -> float:
    """Return about how many seconds a unit takes on two cores of 2026."""
    if isinstance(unit, specs.SpatialTransformer):
        return 8.0 + 12.0 * unit.depth
    return 15.0 if isinstance(unit, specs.ResBlock) else 12.0


def _read() -> dict[str, float]:
    known = read_json(own_times_file(), MOST_BYTES)
    try:
        numbers = {str(name): float(value) for name, value in known.items()}
    except (ValueError, TypeError, AttributeError, OverflowError):
        return {}  # none yet, or something else
    return {name: n for name, n in numbers.items() if LEAST_FACTOR <= n < 1000}


def _write(known: dict[str, float]) -> None:
    with contextlib.suppress(OSError):  # no profile, no room: see the class
        replace_json(own_times_file(), known)
