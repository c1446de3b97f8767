"""How much faster images are with acceleration: only images that do the same work are compared."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ...compile.speeds import agreeing
from .. import webui
from ..clock import Timing
from ..service import service
from ..unet.comparison import Both

_LEAST_STEPS = 3
"""Fewer say nothing: the first step of an image warms up."""

_ALIKE = 1.05
"""A factor below this is no difference, however exactly it was measured."""


@dataclass(frozen=True)
class Speed:
    """The times of steps by a backend and by the WebUI's own code, in milliseconds."""

    on: tuple[float, ...]
    off: tuple[float, ...]
    backend: str
    count: int
    size: str
    both_ways: bool = False  # `count` steps, each computed both ways, instead of images

    @property
    def factor(self) -> float | None:
        """How many times faster a step is with the backend; None within the noise.

        Within the noise are times whose middle halves overlap.
        """
        (on_low, on, on_high), (off_low, off, off_high) = _quartiles(self.on), _quartiles(self.off)
        apart = on_high < off_low or off_high < on_low
        if not apart or min(on, off) <= 0:
            return None
        return off / on if max(off / on, on / off) >= _ALIKE else None

    @property
    def sentence(self) -> str:
        """What was measured: `1.7x faster with aoti: 6.9 s a step instead of 11.9 s, ...`."""
        on, off = map(statistics.median, (self.on, self.off))
        what = f"{self.count} images of {self.size}"
        if self.both_ways:
            what = f"{self.count} steps of {self.size} computed both ways"
        if self.factor is None:
            return (
                f"No difference within the noise: {seconds(on)} s a step with {self.backend}, "
                f"{seconds(off)} s by the WebUI's own code, {what}"
            )
        more, times = agreeing(on, off, seconds, _times)
        instead = f"{seconds(on, more)} s a step instead of {seconds(off, more)} s, {what}"
        if self.factor < 1:
            return f"{times}x slower with {self.backend}: {instead}"
        return f"{times}x faster with {self.backend}: {instead}"


def alike(timings: Sequence[Timing]) -> list[Timing]:
    """Return those that do the same work as the last one, and that no compiler slowed down."""
    return [t for t in timings if t.like(timings[-1]) and not t.beside_compiler]


def measured() -> Speed | None:
    """Return how fast images like the last one are; None where that cannot be told yet.

    The backend that serves is compared with the WebUI's own code, or the last one that did: an
    X/Y/Z plot ends with another.
    """
    shown = alike(service.clock.timings)
    if not shown:
        return None
    used, last, serving = [t.backend for t in shown if t.backend], shown[-1], service.served()[1]
    backend = serving if serving in used else used[-1] if used else None
    compared = [t for t in shown if t.backend in ("", backend)]
    on, off = (
        tuple(time for t in compared if bool(t.backend) is ours for time in t.times)
        for ours in (True, False)
    )
    if backend and min(len(on), len(off)) >= _LEAST_STEPS:
        return Speed(on, off, backend, sum(t.images for t in compared), size_of(last))
    return _both_ways(last)


def _both_ways(like: Timing) -> Speed | None:
    """Return what steps tell that were computed both ways, like those of an image."""
    current = service.current()
    if current is None:
        return None
    backend, times = current.witness.trial.backend, current.counts.tally.times
    found = [t for t in times if (t.backend, _work(t)) == (backend, _work(like))]
    if len(found) < _LEAST_STEPS:
        return None
    on, off = tuple(1000 * t.ours_s for t in found), tuple(1000 * t.theirs_s for t in found)
    return Speed(on, off, backend, len(found), like.size, both_ways=True)


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
        return f"Not compared yet: no image of {size} was accelerated"
    if all(t.backend for t in shown):
        return (
            f"Not compared yet: no image of {size} was made by the WebUI's own code; "
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


def _work(of: Timing | Both) -> tuple[int, ...]:
    """Return B, H/8 and W/8: an inpainting model's UNet gets more channels than the sampler."""
    return of.shape[0], *of.shape[-2:]


def _quartiles(times: Sequence[float]) -> list[float]:
    return statistics.quantiles(times, n=4)


def _times(ratio: float) -> str:
    return f"{max(ratio, 1 / ratio):.1f}"


def seconds(milliseconds: float, more: int = 0) -> str:
    """Return a time in seconds: two digits, or one decimal, and so many `more`."""
    s = milliseconds / 1000
    return f"{s:.{1 + more}f}" if s >= 1 else f"{s:.{2 + more}g}"
