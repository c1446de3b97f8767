"""Where a CUDA graph pays, and where there is room for one."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from ...compile.machine import RESERVE
from ...config import MIB

CALL_BYTES = 16 * 1024
"""What a UNet call is taken to need: bytes for each pixel of the latent images and byte of dtype.

In the laboratory (float16, 512x512 to 1024x1024) SD1's own code takes 9 KiB, compiled code 6, and
the recording of a CUDA graph 8."""

LAUNCH_BOUND = 0.4
"""A graph pays where launches take this share of a call's time on the GPU.

On an H200 they took 0.48 of it for SDXL at 1024x1024, which a graph made 9 % faster (416 MiB), and
0.22 for SD1 at 1024x1024, which it made 3 % faster."""

PAYS_AFTER = 60
"""Calls for which recordings must live to be worth their time: three images."""


def call_bytes(x: Tensor) -> int:
    """Return what a UNet call is taken to need for its activations. `x: [B, C, H, W]`, latents."""
    return x.shape[0] * x.shape[2:].numel() * x.element_size() * CALL_BYTES


class Policy:
    """Decides which shapes are recorded, from what is known of them and of earlier recordings."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._bytes: dict[Hashable, int] = {}
        self._launch_bound: dict[Hashable, bool] = {}
        self._calls = 0  # since recordings were last given up
        self._short_lived = 0  # how often in a row that was too early

    def count(self) -> None:
        """Note a call."""
        self._calls += 1

    def given_up(self, any_recorded: bool) -> None:
        """Note that all recordings are gone: the weights have moved, or memory was short."""
        if any_recorded:
            self._short_lived = 0 if self._calls >= PAYS_AFTER else self._short_lived + 1
        self._calls = 0

    def measured(self, key: Hashable, launch_s: float, gpu_s: float) -> None:
        """Note the seconds that the launches of a call took, and all of it on the GPU."""
        self._launch_bound[key] = launch_s >= LAUNCH_BOUND * gpu_s

    def is_measured(self, key: Hashable) -> bool:
        """Return whether it is known what bounds this shape."""
        return key in self._launch_bound

    def forget_times(self) -> None:
        """Forget what was measured: other code serves."""
        self._launch_bound.clear()

    def pays(self, key: Hashable) -> bool:
        """Return whether a recording would make the calls of this shape faster."""
        # they move at every image under --medvram, and on a card that is always full
        moving = self._short_lived >= 2 and self._calls < PAYS_AFTER
        return self._launch_bound.get(key, False) and not moving

    def took(self, key: Hashable, size: int) -> None:
        """Note the bytes that a recording of this shape takes."""
        self._bytes[key] = size

    def ran_out(self, key: Hashable, estimate: int) -> None:
        """Note that a recording found less room than it needed: twice that must be there."""
        self._bytes[key] = min(2 * self._bytes.get(key, estimate), self.max_bytes)

    def exceeds(self, key: Hashable, others: int) -> bool:
        """Return whether this shape is known not to fit under the cap beside `others` bytes."""
        return others + self._bytes.get(key, 0) > self.max_bytes

    def no_room(self, key: Hashable, estimate: int, others: int, free: float) -> str | None:
        """Return why there is no room to record this shape, or None.

        `estimate`: its bytes where they are not known yet; `others`: the bytes of recordings that
        are in use; `free`: video memory that can be had.
        """
        size = self._bytes.get(key, estimate)
        needs = f"no CUDA graph for this size: it needs {size / MIB:.0f} MiB"
        if self.exceeds(key, others):
            beside = f" beside {others / MIB:.0f} MiB for sizes in use" if others else ""
            return f"{needs}{beside}, the cap is {self.max_bytes / MIB:.0f} MiB"
        if free - size < RESERVE:
            return f"{needs} and would leave less than {RESERVE / MIB:.0f} MiB of video memory free"
        return None
