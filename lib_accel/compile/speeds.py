"""How fast a backend computes a step here, against the WebUI's own code: pairs of measured times.

They are kept in the user's profile, by what they depend on: the card and its driver, torch, the
units, and how the WebUI computes attention. They decide what serves.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..config import own_speeds_file
from ..store.files import read_json, replace_json
from .target import Target

NEEDED = 3
"""Pairs that decide where they agree."""

KEPT = 9
"""Pairs that are kept, the newest ones. On a machine that others use too, it takes so many."""

BOUND = 1.05
"""What takes more than this share of the WebUI's own time is slower."""

STEADY, CLEAR = 1.2, 1.5
"""Pairs agree where the largest ratio is at most 1.2 times the smallest, or all are above 1.5."""

_MOST_DIGITS = 4  # beyond the usual ones, see `agreeing`
_MOST_ENTRIES = 16  # of the file: the machines, models and ways to compute attention that came last
_MOST_BYTES = 512 * 1024

Groups = Mapping[str, Sequence["Pair"]]


class Pair(NamedTuple):
    """A step of the UNet that was computed both ways."""

    size: str  # as "2 x 512x512", both prompts of an image counted
    ours_s: float
    theirs_s: float  # by the WebUI's own code

    @property
    def ratio(self) -> float:
        """Our time in times of the WebUI's."""
        return self.ours_s / self.theirs_s


def size_class(shape: Sequence[int]) -> int:
    """Return the size class of a step on `[B, C, H, W]`.

    It is the number of binary digits of `B * H * W`, so what is more than twice as large is in
    another class: which way is faster changes with the amount of work.
    """
    return (shape[0] * shape[-2] * shape[-1]).bit_length()


class Speeds:
    """The pairs of this user, and what follows from them.

    `theirs` names how the WebUI computes attention now, on which its own speed depends. Without it
    there is nothing to compare with, and nothing is measured. The file is a convenience: where it
    cannot be read or written, steps are measured again after the next start.
    """

    def __init__(self, theirs: Callable[[], str] | None = None):
        self._theirs = theirs
        self._known: dict[str, dict[str, list[Pair]]] | None = None  # read when it is needed

    # -- what was measured

    def add(
        self, target: Target, backend: str, shape: Sequence[int], ours_s: float, theirs_s: float
    ) -> None:
        """Keep the times of a step on `shape: [B, C, H, W]`, computed both ways."""
        entry, group = self._entry(target), _group(backend, size_class(shape))
        if entry is None or not _is_time(ours_s) or not _is_time(theirs_s):
            return
        size = f"{shape[0]} x {shape[-1] * 8}x{shape[-2] * 8}"
        pair = Pair(size, float(f"{ours_s:.6g}"), float(f"{theirs_s:.6g}"))
        pairs = [*self._groups(target).get(group, ()), pair][-KEPT:]
        self._write(entry, {**self._groups(target), group: pairs})

    def forget(self, target: Target) -> None:
        """Let everything be measured again."""
        entry = self._entry(target)
        if entry is not None:
            self._write(entry, {})

    def wants(self, target: Target, backend: str, size: int) -> bool:
        """Return whether more pairs of a size class are needed to decide."""
        if self._theirs is None:
            return False
        pairs = self._pairs(target, backend, size)
        clear = len(pairs) >= NEEDED and (max(_ratios(pairs)) <= BOUND or _is_slower(pairs))
        return not clear and len(pairs) < KEPT

    def known(self, target: Target) -> list[dict[str, Any]]:
        """Return what was measured for a target, for the status: one row a backend and class."""
        rows = []
        for group, pairs in self._groups(target).items():
            backend, _, size = group.rpartition(" ")
            row = {"backend": backend, **_median(pairs)._asdict(), "pairs": len(pairs)}
            rows.append({**row, "slower": self.why_not(target, backend, int(size)) is not None})
        return rows

    # -- what follows

    def why_not(self, target: Target, backend: str, size: int) -> str | None:
        """Return why steps of a size class are left to the WebUI's own code, or None."""
        pairs = self._pairs(target, backend, size)
        if not _is_slower(pairs):
            return None
        pair = _median(pairs)
        return (
            f"{backend} is slower here at {pair.size}: {pair.ours_s:.3g} s a step instead of "
            f"{pair.theirs_s:.3g} s; the WebUI's own code computes this size; "
            "Build now measures again"
        )

    def ranked(self, target: Target, names: Iterable[str]) -> list[str]:
        """Return backends, best first: as given, but before those that were measured slower."""
        ranked: list[str] = []
        for name in names:
            slower = (i for i, other in enumerate(ranked) if self.why_after(target, other, name))
            ranked.insert(next(slower, len(ranked)), name)
        return ranked

    def why_after(self, target: Target, name: str, other: str) -> str | None:
        """Return why another backend comes before `name`, or None where it was not measured so.

        Size classes that both were measured at count, and in each the WebUI's time is the measure.
        """
        mine, others = (self._by_size(target, each) for each in (name, other))
        common = mine.keys() & others.keys()
        if not common:
            return None
        # beyond the noise: our better times against the other's worse ones
        apart = {s: _quartiles(mine[s])[0] / _quartiles(others[s])[2] for s in common}
        if statistics.geometric_mean(apart.values()) <= BOUND:
            return None
        size = max(common, key=lambda size: (apart[size], size))
        best = _median(others[size])
        instead = _median(mine[size]).ratio * best.theirs_s
        return (
            f"{other} is faster here: {best.ours_s:.3g} s a step instead of {instead:.3g} s "
            f"at {best.size}"
        )

    def _by_size(self, target: Target, backend: str) -> dict[str, Sequence[Pair]]:
        """Return the pairs of a backend by size class, where there are enough of them."""
        found = {}
        for group, pairs in self._groups(target).items():
            name, _, size = group.rpartition(" ")
            if name == backend and len(pairs) >= NEEDED:
                found[size] = pairs
        return found

    # -- where it is kept

    def _pairs(self, target: Target, backend: str, size: int) -> Sequence[Pair]:
        return self._groups(target).get(_group(backend, size), ())

    def _groups(self, target: Target) -> Groups:
        entry = self._entry(target)
        if entry is None:
            return {}
        if self._known is None:
            self._known = _read()
        return self._known.get(entry, {})

    def _entry(self, target: Target) -> str | None:
        """Return all that the times depend on. The key of a target holds torch and its units."""
        if self._theirs is None:
            return None
        driver = driver_version() if target.device.type == "cuda" else ""
        return " | ".join((target.key, target.machine.device_name, driver, self._theirs()))

    def _write(self, entry: str, groups: Groups) -> None:
        """Replace an entry. It becomes the newest one, and the oldest are dropped."""
        known = {**(self._known or {}), **_read()}  # another process may have written it
        known.pop(entry, None)
        known[entry] = {group: list(pairs) for group, pairs in groups.items()}
        self._known = dict(list(known.items())[-_MOST_ENTRIES:])
        with contextlib.suppress(OSError):  # no profile, no room: see the class
            replace_json(own_speeds_file(), self._known)


def agreeing(
    a: float, b: float, number: Callable[[float, int], str], ratio: Callable[[float], str]
) -> tuple[int, str]:
    """Return with how many more digits than usual to write two times, and their ratio in words.

    The two agree: 30 s and 34 s, as one writes 30.4 s and 33.6 s, tell of another ratio. `number`
    writes a time with so many more digits. The fewest are taken whose ratio reads as that of the
    times themselves, and at last the ratio of what is written.
    """
    more = 0
    while True:
        words = ratio(float(number(a, more)) / float(number(b, more)))
        if words == ratio(a / b) or more == _MOST_DIGITS:
            return more, words
        more += 1


@functools.cache
def driver_version() -> str:
    """Return the version of NVIDIA's driver, as "551.23"; "" where there is none."""
    found = ctypes.create_string_buffer(96)
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return ""
        failed = nvml.nvmlSystemGetDriverVersion(found, len(found))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):  # no driver, or a part of one
        return ""
    return "" if failed else found.value.decode(errors="replace")


def _group(backend: str, size: int) -> str:
    return f"{backend} {size}"


def _ratios(pairs: Sequence[Pair]) -> list[float]:
    return [pair.ratio for pair in pairs]


def _quartiles(pairs: Sequence[Pair]) -> list[float]:
    return statistics.quantiles(_ratios(pairs), n=4)


def _is_slower(pairs: Sequence[Pair]) -> bool:
    """Whether enough pairs say so: three of four, and those that agree need not be many."""
    if len(pairs) < NEEDED or _quartiles(pairs)[0] <= BOUND:
        return False
    least, most = min(_ratios(pairs)), max(_ratios(pairs))
    return len(pairs) >= KEPT or most <= STEADY * least or least > CLEAR


def _median(pairs: Sequence[Pair]) -> Pair:
    """Return the pair with the median ratio; of two, the one that is better for us."""
    return sorted(pairs, key=lambda pair: pair.ratio)[(len(pairs) - 1) // 2]


def _read() -> dict[str, dict[str, list[Pair]]]:
    """Return what the file holds; nothing where any of it means nothing."""
    entries = read_json(own_speeds_file(), _MOST_BYTES)
    try:
        return {
            entry: {
                _group(name, int(size)): [_checked(*pair) for pair in pairs]
                for name, size, pairs in ((*g.split(" "), p) for g, p in groups.items() if p)
            }
            for entry, groups in entries.items()
        }
    except (TypeError, AttributeError, ValueError):
        return {}  # none yet, or something else


def _checked(size: Any, ours_s: Any, theirs_s: Any) -> Pair:
    if not (isinstance(size, str) and _is_time(ours_s) and _is_time(theirs_s)):
        raise ValueError("this is no pair of times")
    return Pair(size, ours_s, theirs_s)


def _is_time(seconds: object) -> bool:
    return isinstance(seconds, float) and 1e-6 < seconds < 1e6
