"""Launching kernels: by the driver on a card, or in the tests by an emulation of it.

What is given to a kernel is checked here, because a kernel reads and writes wherever it is told.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ....errors import ArtifactRejected, BadWeights
from . import geometry

WIDTHS = ("wide", "narrow")

KERNELS = (
    *(f"group_norm_{step}_{width}" for step in ("statistics", "apply") for width in WIDTHS),
    *(f"layer_norm_{kind}" for kind in ("wide_40", "wide_48", "any")),
    *(f"{name}_{width}" for name in ("geglu", "add", "upsample", "embedding") for width in WIDTHS),
)
"""Every kernel of cuda/*.cu."""

VECTOR = 16
"""Bytes that a thread reads or writes at once, where the address is a multiple of them."""


_LENGTH = struct.Struct("<Q")


def joined(parts: Iterable[bytes]) -> bytes:
    """Return the code of several programs as one, for `parted`."""
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def parted(code: bytes) -> list[bytes]:
    """Return what `joined` was given. Raises ArtifactRejected where it has not made the code."""
    parts = []
    while code:
        try:
            (length,) = _LENGTH.unpack_from(code)
            (part,) = struct.unpack_from(f"{length}s", code, _LENGTH.size)
        except struct.error as error:
            raise ArtifactRejected(f"the kernels are cut short or no kernels: {error}") from error
        parts.append(part)
        code = code[_LENGTH.size + length :]
    return parts


class Launcher(Protocol):
    """Launches the kernels of one module on one device."""

    device: torch.device
    multiprocessors: int

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, arguments: bytes) -> None:
        """Launch the kernel `name` with blocks of `threads` on torch's current stream.

        `arguments` is the kernel's only parameter, a C struct. Does not wait for the kernel.
        Raises RuntimeError where the driver refuses.
        """
        ...


class Operands:
    """Makes tensors what kernels read: of one dtype and device, in rows without gaps."""

    def __init__(self, launcher: Launcher, dtype: torch.dtype) -> None:
        self.launcher = launcher
        self.device = launcher.device
        self.dtype = dtype
        self.size = torch.empty((), dtype=dtype, device="cpu").element_size()

    def tensor(self, t: Tensor, name: str, shape: Sequence[int] | None = None) -> Tensor:
        """Return `t` contiguous. Raises BadWeights where dtype, device or shape differ."""
        self._check(t, name, shape)
        return t.contiguous()

    def image(self, t: Tensor, name: str, shape: Sequence[int] | None = None) -> Tensor:
        """Return `t: [B, C, H, W]` channels-last, a copy where it is not."""
        if t.ndim != 4:
            raise BadWeights(f"{name}: got the shape {list(t.shape)}, expected [B, C, H, W]")
        self._check(t, name, shape)
        return t.contiguous(memory_format=torch.channels_last)

    def new_image(self, *shape: int) -> Tensor:
        """Return an empty channels-last `[B, C, H, W]`."""
        layout = torch.channels_last
        return torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=layout)

    def offset(self, t: Tensor | None, batch: int, channels: int) -> tuple[Tensor | None, int]:
        """Return an offset `[C]` or `[B, C]`, and how far it is from one image's to the next's."""
        if t is None:
            return None, 0
        each = t.ndim == 2
        t = self.tensor(t, "offset", (batch, channels) if each else (channels,))
        return t, channels if each and batch > 1 else 0

    def _check(self, t: Tensor, name: str, shape: Sequence[int] | None) -> None:
        if t.dtype != self.dtype or t.device != self.device:
            raise BadWeights(
                f"{name} is {t.dtype} on {t.device}; expected {self.dtype} on {self.device}"
            )
        if shape is not None and t.shape != torch.Size(shape):
            raise BadWeights(f"{name}: got the shape {list(t.shape)}, expected {list(shape)}")

    def check_pixels(self, *counts: int) -> None:
        """Raise BadWeights where an image has no pixel, or more than are counted."""
        if min(counts) < 1 or max(counts) >= 2**31:
            raise BadWeights(
                f"an image has {' and '.join(map(str, counts))} pixels; "
                "expected at least one and fewer than 2^31"
            )

    def width(self, columns: Sequence[int], *tensors: Tensor | None) -> int:
        """Return how many elements a thread may read at once: 16 bytes of them, or one."""
        wide = VECTOR // self.size
        if any(count % wide for count in columns):
            return 1
        return 1 if any(p % VECTOR for p in self.pointers(*tensors)) else wide

    def pointers(self, *tensors: Tensor | None) -> list[int]:
        """Return the address of each tensor, 0 for None."""
        return [0 if t is None else t.data_ptr() for t in tensors]

    def launch(
        self, kernel: str, wide: int, grid: tuple[int, int, int], threads: int, arguments: bytes
    ) -> None:
        """Launch a kernel; `wide` chooses between `_wide` and `_narrow`, 0 takes the name as it is.

        Raises BadWeights where the grid is larger than a card can have.
        """
        if grid[0] >= 2**31 or max(grid[1:]) > geometry.MOST_TILES:
            raise BadWeights(
                f"{kernel} would need {' x '.join(map(str, grid))} blocks of threads; "
                f"expected at most 2147483647 x {geometry.MOST_TILES} x {geometry.MOST_TILES}: "
                "compute a smaller batch"
            )
        if wide:
            kernel += "_wide" if wide > 1 else "_narrow"
        self.launcher.launch(kernel, grid, threads, arguments)
