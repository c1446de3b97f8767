"""Time, memory, operations and error, each measured the same way for every variant."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...model.architecture import Architecture
from ...model.unet import UNet

Call = Callable[[], Tensor]
T = TypeVar("T")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds of one call, and what it returned."""
    synchronize(device)
    start = time.perf_counter()
    out = call()
    synchronize(device)
    return time.perf_counter() - start, out


@dataclass
class Row:
    """One variant's measurements. Times in seconds, memory in bytes."""

    name: str
    seconds: list[float] = field(default_factory=list)
    compile_s: float = 0.0
    peak_bytes: int = 0  # above what was held before the call
    error: float = float("nan")
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")


def interleave(
    calls: dict[str, Call],
    rows: dict[str, Row],
    device: torch.device,
    rounds: int,
    on_call: Callable[[], object],
) -> None:
    """Warm every call up twice, then run them in turn, `rounds` times: a machine that drifts drifts for all of them."""
    for name, call in calls.items():
        rows[name].peak_bytes = peak(call, device)
        timed(call, device)  # the second call of a shape may still record a graph
        on_call()
    for _ in range(rounds):
        for name, call in calls.items():
            rows[name].seconds.append(timed(call, device)[0])
            on_call()


def peak(call: Call, device: torch.device) -> int:
    """Most memory held during one call, above what was held before, in bytes. On a CPU: resident memory, sampled every 5 ms."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        timed(call, device)
        return torch.cuda.max_memory_allocated(device) - before
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    most = before

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return most - before


def flops(architecture: Architecture, inputs: tuple[Tensor | None, ...]) -> int:
    """Operations of one UNet call, a multiply-add counted as 2, on storage-less tensors."""
    meta = tuple(
        None if t is None else torch.empty_like(t, device="meta", dtype=torch.float32)
        for t in inputs
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        UNet(architecture)(*meta)
    return counter.get_total_flops()


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large matrix product on random data: what this machine's matrix units really reach."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    timed(lambda: a @ b, device)
    seconds = statistics.median(timed(lambda: a @ b, device)[0] for _ in range(7))
    return 2 * n**3 / seconds
