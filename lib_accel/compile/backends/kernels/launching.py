"""What a kernel is launched by: the driver on a card, or in the tests an emulation of it."""

from __future__ import annotations

from typing import Protocol

import torch


class Launcher(Protocol):
    """Launches the kernels of one module on one device."""

    device: torch.device
    multiprocessors: int
    """How many thread blocks at least must run to keep the whole card busy."""

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, arguments: bytes) -> None:
        """Launch the kernel `name` with blocks of `threads` on torch's current stream.

        `arguments` is the kernel's only parameter, a C struct. Does not wait for the kernel.
        Raises RuntimeError where the driver refuses.
        """
        ...
