"""Which memory the base weights of layers that LoRAs touch are copied to.

The faster that memory, the sooner LoRAs change: a merge reads the base of every layer it touches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import AUTO

FREE_BYTES = 8 * 2**30
"""Video memory that `auto` leaves for images and the VAE."""


class BasePlacement:
    """Copies base weights to the place that `Config.lora_base` names.

    `say` prints a line when pinned memory has run out, once.
    """

    def __init__(self, where: str, say: Callable[[str], object]):
        self._where, self._say = where, say
        self._pinned_ran_out = False

    def place(self, base: Tensor, device: torch.device) -> str:
        """Return "host", "pinned" or "gpu": where a base of weights on `device` is kept."""
        if device.type != "cuda":
            return "host"
        where = self._where
        if where == AUTO:
            fits = torch.cuda.mem_get_info(device)[0] - base.nbytes > FREE_BYTES
            where = "gpu" if fits else "pinned"
        return "host" if where == "pinned" and self._pinned_ran_out else where

    def keep(self, base: Tensor, device: torch.device) -> Tensor:
        """Copy `base` to its place, or to ordinary memory where no pinned memory is left."""
        if self.place(base, device) == "gpu":
            try:
                return base.to(device, copy=True)
            except torch.cuda.OutOfMemoryError:
                return self.pin(base)
        return self.pin(base) if self.place(base, device) == "pinned" else base.to("cpu", copy=True)

    def pin(self, base: Tensor) -> Tensor:
        """Copy `base` to pinned memory, or to ordinary memory where none is left."""
        try:
            return torch.empty_like(base, device="cpu", pin_memory=True).copy_(base)
        except RuntimeError as e:
            if not self._pinned_ran_out:
                self._say(
                    f"no more pinned memory for the base weights of LoRAs ({e}); "
                    "ordinary memory serves, and LoRAs change a little slower"
                )
            self._pinned_ran_out = True
            return base.to("cpu", copy=True)
