"""Time, memory, operations, error and kernels, measured the same way for every variant."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ...compile.machine import probe
from ...errors import AccelError
from ...model.architecture import Architecture
from ...model.precision import exact_products, wider
from ...model.unet import UNet

Call = Callable[[], Tensor]
Inputs = tuple[Tensor, Tensor, Tensor, "Tensor | None"]
"""`x: [B, in_channels, H/8, W/8]`, `timesteps: [B]`, `context: [B, L, context_dim]`,
`y: [B, adm_channels]` or None."""

T = TypeVar("T")

WARM_UP_CALLS = 3
"""The first call of a shape runs plainly, the second may record a CUDA graph, the third replays."""


def synchronize(device: torch.device) -> None:
    """Wait for the device, where it computes asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Return the seconds of one call, and what it returned."""
    synchronize(device)
    start = time.perf_counter()
    out = call()
    synchronize(device)
    return time.perf_counter() - start, out


@dataclass
class Row:
    """The measurements of one variant. Times in seconds, memory in bytes."""

    name: str
    seconds: list[float] = field(default_factory=list)
    compile_s: float = 0.0
    peak_bytes: int = 0  # see `peak`
    error: float = float("nan")  # relative, against `precise_call`
    one_call_s: float = float("nan")  # of its second call: all there is until it is timed
    note: str = ""  # why the variant was left out, or how to read its numbers

    @property
    def median(self) -> float:
        """Median seconds of a call; NaN where none was timed."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements for JSON; None for all of them where no call was timed."""
        known = {
            "median_s": self.median,
            "min_s": min(self.seconds, default=None),
            "max_s": max(self.seconds, default=None),
            "compile_s": self.compile_s,
            "peak_bytes": self.peak_bytes,
            "error": self.error,
        }
        measured = known if self.seconds else dict.fromkeys(known)
        return {"name": self.name, **measured, "note": self.note}


@contextmanager
def or_left_out(row: Row, say: Callable[[str], object]) -> Iterator[None]:
    """Make a row in the block; where that fails, the row says why, and the others go on."""
    try:
        yield
    except (AccelError, RuntimeError) as error:
        row.note = str(error).strip().splitlines()[0]
        say(f"  left out: {row.note}")


def machine_of(device: torch.device) -> dict[str, Any]:
    """Return what a result says of the machine that it was measured on."""
    return {**vars(probe(device)), "threads": torch.get_num_threads()}


def interleave(
    calls: Mapping[str, Call],
    rows: Mapping[str, Row],
    device: torch.device,
    rounds: int,
    on_call: Callable[[], object],
    warm_up: int = WARM_UP_CALLS,
) -> None:
    """Warm up every call and measure its memory, then time all of them in turn, `rounds` times.

    A machine that becomes slower or faster meanwhile does so for all of them.
    """
    for name, call in calls.items():
        rows[name].peak_bytes = max(rows[name].peak_bytes, peak(call, device, warm_up))
        on_call()
    for _ in range(rounds):
        for name, call in calls.items():
            rows[name].seconds.append(timed(call, device)[0])
            on_call()


def peak(call: Call, device: torch.device, calls: int = WARM_UP_CALLS) -> int:
    """Return the most memory that a number of calls took, above what was held before, in bytes.

    On a GPU: the larger of what was allocated at once and of what stays reserved after the calls
    (the pool of a CUDA graph). On a CPU: resident memory of the process, sampled every 5 ms.
    """
    gc.collect()
    watch = _gpu_memory(device) if device.type == "cuda" else _resident_memory()
    with watch as bytes_taken:
        for _ in range(calls):
            timed(call, device)
    return bytes_taken()


@contextmanager
def _gpu_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    allocated = torch.cuda.memory_allocated(device)
    reserved = torch.cuda.memory_reserved(device)

    def taken() -> int:
        torch.cuda.empty_cache()
        at_once = torch.cuda.max_memory_allocated(device) - allocated
        return max(at_once, torch.cuda.memory_reserved(device) - reserved)

    yield taken


@contextmanager
def _resident_memory() -> Iterator[Callable[[], int]]:
    process, done = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(most, process.memory_info().rss) - before
    finally:
        done.set()
        thread.join()


def precise_call(
    architecture: Architecture, parameters: Mapping[str, nn.Parameter], *inputs: Tensor | None
) -> Tensor:
    """Compute one UNet call at a higher precision, to measure errors against.

    `inputs` are those of `Inputs`. Returns `[B, out_channels, H/8, W/8]` in float64 where the
    weights are float32, else in float32. Weights are widened layer by layer: there is no second
    copy of them.
    """
    x, *others = inputs
    assert x is not None
    unet = UNet(architecture).adopt(parameters)
    unet.compute_dtype = wide = wider(unet.dtype, x.device)
    with torch.no_grad(), exact_products(x.device):
        return unet(x.to(wide), *others)


def flops(architecture: Architecture, inputs: tuple[Tensor | None, ...]) -> int:
    """Return the operations of one UNet call."""
    return operations(UNet(architecture), *inputs)


def operations(compute: Callable[..., Tensor], *inputs: Tensor | None) -> int:
    """Return those of `compute(*inputs)`, a multiply-add counted as 2, with weights on `meta`."""
    meta = tuple(
        None if t is None else torch.empty_like(t, device="meta", dtype=torch.float32)
        for t in inputs
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        compute(*meta)
    return counter.get_total_flops()


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations a second of a large matrix product: what this device reaches."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    timed(lambda: a @ b, device)
    seconds = statistics.median(timed(lambda: a @ b, device)[0] for _ in range(7))
    return 2 * n**3 / seconds


PROFILED_CALLS = 5


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
        for _ in range(PROFILED_CALLS):
            call()
        synchronize(device)
    found = []
    for event in p.key_averages():
        if on_gpu and str(event.device_type).endswith("CPU"):
            continue  # the rows of what launched the kernels would count them twice
        found.append(
            (
                event.key,
                event.count / PROFILED_CALLS,
                _microseconds(event, on_gpu) / PROFILED_CALLS / 1000,
            )
        )
    total = sum(ms for _, _, ms in found) or 1.0
    found.sort(key=lambda k: -k[2])
    return [asdict(Kernel(name, launches, ms, ms / total)) for name, launches, ms in found]


def _microseconds(event: Any, on_gpu: bool) -> float:
    if not on_gpu:
        return float(event.self_cpu_time_total)
    newer = getattr(event, "self_device_time_total", None)  # torch 2.4 and later
    return float(event.self_cuda_time_total if newer is None else newer)
