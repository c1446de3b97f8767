"""Measures how long the UNet takes, image by image, with acceleration and without.

It measures around the sampler's UNet calls, so it sees what any UNet costs, whoever computes it.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

KEPT = 40
"""How many batches of images are remembered."""


@dataclass(frozen=True)
class Timing:
    """One batch of images: the median time of a UNet call, and whether compiled code served it."""

    milliseconds: float
    calls: int
    accelerated: bool


class Clock:
    """Collects the times of UNet calls on the device that `device` returns."""

    def __init__(self, device: Callable[[], torch.device]) -> None:
        self._device = device
        self.timings: deque[Timing] = deque(maxlen=KEPT)
        self._marks: list[tuple[Any, Any]] = []
        self._begun: Any = None

    def start(self, _: Any = None) -> None:
        """Note that a UNet call begins: the WebUI's callback `on_cfg_denoiser`."""
        self._begun = _now(self._device())

    def stop(self) -> None:
        """Note that the UNet call has ended."""
        if self._begun is not None:
            self._marks.append((self._begun, _now(self._device())))
            self._begun = None

    def finish(self, accelerated: bool) -> None:
        """Close a batch. This reads CUDA events that have passed: the image is decoded by now."""
        marks, self._marks = self._marks, []
        if marks:
            median = statistics.median(_milliseconds(*m) for m in marks)
            self.timings.append(Timing(median, len(marks), accelerated))


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    # with `--device-id`, the WebUI's device need not be torch's current one
    event.record(torch.cuda.current_stream(device))
    return event


def _milliseconds(begun: Any, ended: Any) -> float:
    if isinstance(begun, float):
        return (ended - begun) * 1000
    ended.synchronize()
    return begun.elapsed_time(ended)
