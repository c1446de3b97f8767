"""How long the UNet took, image by image, with acceleration and without: measured around the sampler's calls, not inside them."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

KEPT = 40  # images


@dataclass(frozen=True)
class Timing:
    """One batch of images: median milliseconds a UNet call, and whether compiled code made them."""

    milliseconds: float
    calls: int
    accelerated: bool


class Clock:
    """`start` and `stop` are the WebUI's callbacks before and after the sampler's UNet call; `finish` closes a batch."""

    def __init__(self, device: Callable[[], torch.device]) -> None:
        self._device = device
        self.timings: deque[Timing] = deque(maxlen=KEPT)
        self._marks: list[tuple[Any, Any]] = []
        self._begun: Any = None

    def start(self, _: Any = None) -> None:
        self._begun = _now(self._device())

    def stop(self) -> None:
        if self._begun is not None:
            self._marks.append((self._begun, _now(self._device())))
            self._begun = None

    def finish(self, accelerated: bool) -> None:
        """Waits for the GPU only where it has finished anyway: the image is decoded by now."""
        marks, self._marks = self._marks, []
        if marks:
            self.timings.append(
                Timing(statistics.median(_milliseconds(*m) for m in marks), len(marks), accelerated)
            )


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(
        torch.cuda.current_stream(device)
    )  # which need not be torch's current device (`--device-id`)
    return event


def _milliseconds(begun: Any, ended: Any) -> float:
    if isinstance(begun, float):
        return (ended - begun) * 1000
    ended.synchronize()
    return begun.elapsed_time(ended)
