"""The time that the demonstration may take, and what fits into it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..report.verdict import FEWEST

SMALL = 256
"""Pixels of the call that the time of larger ones is estimated from."""
CHOICES = ((512, 6), (512, 4), (384, 6), (384, 4), (320, 4), (256, 4), (256, 3), (192, 3))
"""Sizes and steps, best first. A size tells more than steps do: attention grows with its square."""
ON_A_GPU = (512, 20)
SLACK = 1.25
"""How much longer than estimated the images may take."""


class Clock:
    """Counts down from `began` (of `time.time`), which a set-up of the environment may precede."""

    def __init__(self, minutes: float, say: Callable[[str], object], began: float | None = None):
        now = time.time()
        self._end, self._say = (began or now) + 60 * minutes, say
        self.phases: dict[str, float] = {"getting started": now - began} if began else {}

    @property
    def left(self) -> float:
        """Seconds left, below zero when the time is over."""
        return self._end - time.time()

    def say(self, text: str) -> None:
        """Print what happens now, and the time that is left."""
        left = max(0, round(self.left))
        self._say(f"[{left // 60}:{left % 60:02} left] {text}")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Print the phase and write down how many seconds it takes."""
        self.say(f"{name} ...")
        began = time.monotonic()
        yield
        self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - began


@dataclass(frozen=True)
class Images:
    """What is made: images of `size` pixels and `steps` steps, four of them and a first step."""

    size: int
    steps: int

    def seconds(self, small: float) -> float:
        """Return about how long they take where a call at SMALL takes `small` seconds."""
        calls = 4 * self.steps + 1 + 2  # two to warm up
        return SLACK * calls * small * (self.size / SMALL) ** 2.2

    def within(self, left: float, pair: float) -> Images:
        """Return these with fewer steps where a pair of steps takes `pair` seconds."""
        return Images(self.size, min(self.steps, max(FEWEST, int(left / pair / 2.5))))


def choose(left: float, small: float) -> Images:
    """Return the best choice that fits into `left` seconds, else the smallest."""
    possible = [Images(*choice) for choice in CHOICES]
    return next((c for c in possible if c.seconds(small) <= left), possible[-1])
