"""How much faster images are with compiled code: only images that do the same work are compared."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .. import webui
from ..clock import Timing
from ..service import service

_LEAST_STEPS = 3
"""Fewer say nothing: the first step of an image warms up."""

_ALIKE = 1.05
"""A factor below this is no difference, however exactly it was measured."""


@dataclass(frozen=True)
class Speed:
    """The times of steps with compiled code and without, in milliseconds."""

    on: tuple[float, ...]
    off: tuple[float, ...]
    count: int
    size: str | None  # of the `count` images; None where they are steps, each computed both ways

    @property
    def factor(self) -> float | None:
        """How many times faster a step is with compiled code; None within the noise.

        Within the noise are times whose middle halves overlap.
        """
        (on_low, on, on_high), (off_low, off, off_high) = _quartiles(self.on), _quartiles(self.off)
        apart = on_high < off_low or off_high < on_low
        return off / on if apart and max(off / on, on / off) >= _ALIKE else None

    @property
    def sentence(self) -> str:
        """What was measured: `1.7x faster: 6.9 s a step instead of 11.9 s, 12 images of ...`."""
        on, off, factor = *map(seconds, map(statistics.median, (self.on, self.off))), self.factor
        what = f"{self.count} steps computed both ways"
        if self.size:
            what = f"{self.count} images of {self.size}"
        if factor is None:
            return (
                f"No difference within the noise: {on} s a step with compiled code, {off} s "
                f"without, {what}"
            )
        if factor < 1:
            return f"{1 / factor:.1f}x slower: {on} s a step instead of {off} s, {what}"
        return f"{factor:.1f}x faster: {on} s a step instead of {off} s, {what}"


def alike(timings: Sequence[Timing]) -> list[Timing]:
    """Return those that do the same work as the last one, and that no compiler slowed down."""
    return [t for t in timings if t.like(timings[-1]) and not t.beside_compiler]


def measured() -> Speed | None:
    """Return how fast images like the last one are; None where that cannot be told yet."""
    shown = alike(service.clock.timings)
    on, off = (
        tuple(time for t in shown if bool(t.backend) is compiled for time in t.times)
        for compiled in (True, False)
    )
    if min(len(on), len(off)) >= _LEAST_STEPS:
        return Speed(on, off, sum(t.images for t in shown), size_of(shown[-1]))
    current = service.current()
    pairs = list(current.counts.tally.times) if current else []
    if len(pairs) < _LEAST_STEPS:
        return None
    theirs, ours = ([1000 * seconds for seconds in way] for way in zip(*pairs, strict=True))
    return Speed(tuple(ours), tuple(theirs), len(pairs), None)


def headline() -> str:
    """Return the main figure of the tab in one sentence, or why there is none."""
    if not webui.enabled():
        return why_off()
    speed, shown = measured(), alike(service.clock.timings)
    if speed:
        return speed.sentence
    if not service.clock.timings:
        return "No image has been made yet."
    if not shown:
        return "Not compared yet: the images so far were made while the compiler ran"
    size, current = size_of(shown[-1]), service.current()
    if current and (why := current.witness.trial.why_not(shown[-1].shape)):
        return why
    if not any(t.backend for t in shown):
        return f"Not compared yet: no image of {size} was made with compiled code"
    if all(t.backend for t in shown):
        return (
            f"Not compared yet: no image of {size} was made without compiled code; "
            "the axis Acceleration of the X/Y/Z plot makes both"
        )
    return f"Not compared yet: images of {size} had fewer than {_LEAST_STEPS} steps"


def why_off() -> str:
    """Return why acceleration is off, and how to switch it on."""
    if webui.flag("accel_disable"):
        return "Acceleration is off: the WebUI was started with --accel-disable"
    return "Acceleration is off. Switch it on in Settings > Acceleration"


def size_of(timing: Timing) -> str:
    """Return the size of a batch's images, and their number where it is not 1."""
    return timing.size if timing.images == 1 else f"{timing.size} in batches of {timing.images}"


def _quartiles(times: Sequence[float]) -> list[float]:
    return statistics.quantiles(times, n=4)


def seconds(milliseconds: float) -> str:
    """Return a time in seconds: two digits, or one decimal."""
    s = milliseconds / 1000
    return f"{s:.1f}" if s >= 1 else f"{s:.2g}"
