"""Which steps of one UNet are timed against its own code, and which are left to that code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..compile.speeds import KEPT, Speeds, size_class
from ..compile.target import Target
from ..config import AUTO
from .engine import Engine

EVERY = 4
"""While pairs of times are wanted, one step of so many of an image is computed both ways.

So images are hardly slower, and the pairs are there after one or two."""


class Trial:
    """Times the steps of the UNet of `engine`, and decides what its size classes are left to.

    What is decided holds for a whole image: two ways differ by rounding. A backend that the user
    has named serves even where it is slower.
    """

    def __init__(self, engine: Engine, speeds: Speeds):
        self._engine, self._speeds = engine, speeds
        self._calls: Counter[int] = Counter()  # of this image, by size class
        self._tried: Counter[tuple[str, int]] = Counter()  # without end they would be in vain
        self._decided: dict[tuple[str, int], str | None] = {}  # for this image
        self._units: object = None  # that served when `_now` was
        self._now: tuple[Target, str] | None = None

    def begin_image(self) -> None:
        """Decide anew."""
        self._calls.clear()
        self._decided.clear()
        self._now = None

    def why_not(self, shape: Sequence[int]) -> str | None:
        """Return why a step on `[B, C, H, W]` is left to the UNet's own code in this image."""
        if self._engine.config.backend != AUTO:
            return None
        target, backend = self._serving()
        which = backend, size_class(shape)
        if which not in self._decided:
            self._decided[which] = self._speeds.why_not(target, *which)
        return self._decided[which]

    def is_due(self, x: Tensor) -> bool:
        """Return whether to time the step on `x: [B, 4, H/8, W/8]`. Asked once a step."""
        size = size_class(x.shape)
        self._calls[size] += 1
        if self._calls[size] % EVERY:
            return False
        target, backend = self._serving()
        which = backend, size
        if self._tried[which] >= 2 * KEPT or not self._speeds.wants(target, *which):
            return False
        self._tried[which] += 1
        return True

    def add(self, shape: Sequence[int], ours_s: float, theirs_s: float) -> None:
        """Keep the times of a step on `shape` that both ways have computed, as they had before."""
        if self._engine.settled:
            target, backend = self._serving()
            self._speeds.add(target, backend, shape, ours_s, theirs_s)

    def _serving(self) -> tuple[Target, str]:
        """Return what serves: its target, and the backend."""
        if self._now is None or self._units is not self._engine.units:
            self._units = self._engine.units
            self._now = self._engine.target, self._engine.status.backend
        return self._now

    @property
    def backend(self) -> str:
        """The backend that serves."""
        return self._serving()[1]

    # -- what the user asks for and sees

    @property
    def slower(self) -> bool:
        """Whether anything is left to the UNet's own code because that is faster."""
        return any(row["slower"] for row in self.known)

    @property
    def known(self) -> list[dict[str, Any]]:
        """What was measured of this target, for the status."""
        return self._speeds.known(self._engine.target)

    def begin_anew(self) -> None:
        """Let everything be measured again, from the next image on."""
        self._tried.clear()
        self._speeds.forget(self._engine.target)
