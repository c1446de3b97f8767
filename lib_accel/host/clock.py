"""Measures how long the phases of the last images took, by us and by the WebUI's own code.

It measures around the sampler's UNet calls, so it sees what any UNet costs, whoever computes it.
What is before the first one is the prompt, and what is after the last one is the VAE.
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

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Timing:
    """One batch of images, or one of its passes where the second has another size."""

    times: tuple[float, ...]  # of its steps without what checking them took, milliseconds
    backend: str  # that computed it, "eager" included; "" for the WebUI's own code
    shape: Shape  # of the latents of a step, [B, 4, H/8, W/8]: B counts both prompts
    images: int  # in the batch
    model: str  # the checkpoint
    beside_compiler: bool = False  # whose work slows steps down
    before: float = 0.0  # its first step, since the batch or pass began; milliseconds
    after: float = 0.0  # its last step, until the pictures were there; 0: another pass follows
    vae: str = ""  # whose compiled code decoded it; "" where none did
    checks: float = 0.0  # computing steps the WebUI's way too; milliseconds

    @property
    def milliseconds(self) -> float:
        """The median time of a step."""
        return statistics.median(self.times)

    @property
    def size(self) -> str:
        """The size of its images, in pixels."""
        height, width = self.shape[-2:]
        return f"{width * 8}x{height * 8}"

    def like(self, other: Timing) -> bool:
        """Whether the other one does the same work in a step."""
        return (self.shape, self.model) == (other.shape, other.model)


class Clock:
    """Collects the times of steps on the device that `device` returns.

    `checking` returns the seconds that have gone into checks of steps so far.
    """

    def __init__(
        self, device: Callable[[], torch.device], checking: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._device, self._checking = device, checking
        self.timings: deque[Timing] = deque(maxlen=KEPT)
        self._marks: dict[Shape, list[tuple[Any, Any, float]]] = {}  # begun, ended, checking
        self._begun: tuple[Shape, Any, float] | None = None
        self._began: Any = None  # the batch

    def begin(self) -> None:
        """Begin a batch; forget what one that failed has left."""
        self._marks, self._begun, self._began = {}, None, now(self._device())

    def start(self, params: Any) -> None:
        """Note that a step begins: the WebUI's callback `on_cfg_denoiser`."""
        self._begun = tuple(params.x.shape), now(self._device()), self._checking()

    def stop(self, params: Any) -> None:
        """Note that the step has ended, if it has not yet.

        The WebUI's callbacks are `on_cfg_denoised`, which Forge never calls, and
        `on_cfg_after_cfg`.
        """
        if self._begun is not None:
            shape, begun, before = self._begun
            step = begun, now(self._device()), 1000 * (self._checking() - before)
            self._marks.setdefault(shape, []).append(step)
            self._begun = None

    def finish(self, backend: str, p: Any, beside_compiler: bool = False, vae: str = "") -> None:
        """Close a batch of the job `p`: whose code computed its steps, and whose decoded it.

        This reads CUDA events that have passed: the images are decoded by now.
        """
        model = getattr(p, "sd_model_name", None) or ""
        ended, images, before = now(self._device()), getattr(p, "batch_size", 1), self._began
        for shape, marks in self._marks.items():
            checks, last = [check for *_, check in marks], marks[-1][1]
            times = tuple(max(0.0, milliseconds(*m[:2]) - m[2]) for m in marks)
            is_last = marks is next(reversed(self._marks.values()))
            around = milliseconds(before, marks[0][0]), milliseconds(last, ended) * is_last
            given = times, backend, shape, images, model, beside_compiler
            self.timings.append(Timing(*given, *around, vae, sum(checks)))
            before = last
        self.begin()

    @property
    def phases(self) -> dict[str, float] | None:
        """The seconds of the last batch by phase, for the status; None before the first one."""
        if not self.timings:
            return None
        last = self.timings[-1]
        steps = sum(last.times) + last.checks
        parts = {"prompt_s": last.before, "steps_s": steps, "vae_s": last.after}
        return {name: ms / 1000 for name, ms in parts.items()}


def now(device: torch.device) -> Any:
    """Return a mark of this moment; on a GPU it is passed when what was asked before is done."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    # with `--device-id`, the WebUI's device need not be torch's current one
    event.record(torch.cuda.current_stream(device))
    return event


def milliseconds(begun: Any, ended: Any) -> float:
    """Return the time between two marks, and wait for the second."""
    if isinstance(begun, float):
        return (ended - begun) * 1000
    ended.synchronize()
    return begun.elapsed_time(ended)
