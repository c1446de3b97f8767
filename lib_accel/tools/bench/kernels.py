"""Where the milliseconds of one call go, kernel by kernel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .measure import Call, synchronize

CALLS = 5


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel in a call (on a CPU: of one operator). Times in milliseconds."""

    name: str
    launches: float
    ms: float
    share: float  # of the time of all kernels


def kernels(call: Call, device: torch.device) -> list[dict[str, Any]]:
    """Return the kernels of a warmed-up call, slowest first. Numbers are means of a few calls."""
    on_gpu = device.type == "cuda"
    call()
    synchronize(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as p:
        for _ in range(CALLS):
            call()
        synchronize(device)
    found = []
    for event in p.key_averages():
        if on_gpu and str(event.device_type).endswith("CPU"):
            continue  # the rows of what launched the kernels would count them twice
        found.append((event.key, event.count / CALLS, _microseconds(event, on_gpu) / CALLS / 1000))
    total = sum(ms for _, _, ms in found) or 1.0
    found.sort(key=lambda k: -k[2])
    return [asdict(Kernel(name, launches, ms, ms / total)) for name, launches, ms in found]


def _microseconds(event: Any, on_gpu: bool) -> float:
    if not on_gpu:
        return float(event.self_cpu_time_total)
    newer = getattr(event, "self_device_time_total", None)  # torch 2.4 and later
    return float(event.self_cuda_time_total if newer is None else newer)
