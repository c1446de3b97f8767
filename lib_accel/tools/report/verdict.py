"""Whether one way of computing is faster than another, as far as the measurements can tell."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...compile.speeds import agreeing

LEAST = 1.03
"""A smaller difference than this is not called one, however often it was measured."""

FEWEST, MANY = 3, 6
"""Fewer pairs tell nothing. From MANY on it is enough that all of them agree."""

FASTER, SAME, SLOWER = "faster", "the same within the noise", "slower"
UNKNOWN = "too few measurements to tell"


@dataclass(frozen=True)
class Verdict:
    """What pairs of neighbouring measurements say, in seconds without and with acceleration.

    A machine that becomes slower meanwhile does so for both of a pair, so pairs are compared: the
    word is "faster" or "slower" only where every pair agrees, and that in the middle by 3 % or
    more. Where there are few pairs, the slowest of one kind must also be faster than all of the
    other. What is told of both is that pair's: medians of each kind may tell of another ratio.
    """

    off: tuple[float, ...]
    on: tuple[float, ...]

    @staticmethod
    def of(off: Sequence[float], on: Sequence[float]) -> Verdict:
        """Build it from the measurements, in the order of their pairs."""
        return Verdict(tuple(off), tuple(on))

    @property
    def ratios(self) -> list[float]:
        """How many times as long it took without acceleration, from least to most."""
        return sorted(a / b for a, b in zip(self.off, self.on, strict=True))

    @property
    def word(self) -> str:
        """FASTER, SAME, SLOWER or UNKNOWN."""
        if len(self.off) < FEWEST:
            return UNKNOWN
        if min(*self.off, *self.on) <= 0:  # a difference of two times that is lost in the noise
            return SAME
        if _is_less(self.on, self.off):
            return FASTER
        return SLOWER if _is_less(self.off, self.on) else SAME

    @property
    def typical(self) -> tuple[float, float]:
        """The seconds without and with acceleration of the pair whose ratio is in the middle."""
        if min(*self.off, *self.on) <= 0:
            return statistics.median(self.off), statistics.median(self.on)
        pairs = sorted(zip(self.off, self.on, strict=True), key=lambda pair: pair[0] / pair[1])
        return pairs[(len(pairs) - 1) // 2]

    def told(
        self, ranges: bool = False, number: Callable[[float, int], str] | None = None
    ) -> tuple[str, str, str]:
        """Return in words that agree: the typical pair, and the word with its size.

        `ranges` adds those of all measurements: "6.9 s (6.5 to 7.2)". `number(seconds, more)`
        writes them as something else than seconds, with so many more digits than usual.
        """
        (off, on), more, size, write = self.typical, 0, "", number or _number
        if self.word in (FASTER, SLOWER):
            more, size = agreeing(off, on, write, _size)
            size += " "
        if ranges:
            both = (seconds(self.off, off, more), seconds(self.on, on, more))
        else:
            unit = "" if number else " s"
            both = (f"{write(off, more)}{unit}", f"{write(on, more)}{unit}")
        return both[0], both[1], size + self.word

    @property
    def short(self) -> str:
        """The word with its size: "1.7x faster", "6 % slower"."""
        return self.told()[2]

    @property
    def spread(self) -> str:
        """How many pairs there are, and their range in the direction of the word."""
        count = f"{len(self.off)} pair{'s' if len(self.off) > 1 else ''}"
        if min(*self.off, *self.on) <= 0:
            return count
        ends = self.ratios[0], self.ratios[-1]
        low, high = sorted(1 / e for e in ends) if self.word == SLOWER else ends
        low, high = f"{low:.1f}", f"{high:.1f}"
        return f"{count}, {low if low == high else f'{low} to {high}'}x"

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON says of it."""
        return {"word": self.word, "ratios": [round(r, 3) for r in self.ratios]}


def _is_less(a: Sequence[float], b: Sequence[float]) -> bool:
    ratios = [y / x for x, y in zip(a, b, strict=True)]
    apart = len(a) >= MANY or max(a) < min(b)
    return apart and min(ratios) > 1 and statistics.median_low(ratios) >= LEAST


def _size(ratio: float) -> str:
    times = max(ratio, 1 / ratio)
    if times < 1.1:
        return f"{100 * (times - 1):.0f} %"
    return f"{times:.1f}x" if times < 9.95 else f"{times:.0f}x"


def seconds(values: Sequence[float], middle: float | None = None, more: int = 0) -> str:
    """Return the median, or what is in the `middle`, and the range: "6.9 s (6.5 to 7.2)"."""
    found = statistics.median(values) if middle is None else middle
    shown, low, high = (_number(value, more) for value in (found, min(values), max(values)))
    return f"{shown} s" if low == high else f"{shown} s ({low} to {high})"


def short_seconds(value: float) -> str:
    """Return seconds as nobody reads too much into them: "6.9 s", "0.15 s", "23 s"."""
    return f"{_number(value)} s"


def _number(value: float, more: int = 0) -> str:
    return f"{value:.{more}f}" if abs(value) >= 9.95 else f"{value:.{2 + more}g}"
