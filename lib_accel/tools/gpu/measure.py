"""The process of one job, and what each kind of job does: process.py starts this module.

Reads {"job": {...}, "setting": {...}} from standard input and writes one line of JSON at a time:
{"say": words}, {"at": what it is at, should it crash there}, {"result": all that is known by now},
and at the end {"done": true} or {"error": words}.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ...compile.backends.process_tree import end
from ...errors import AccelError, BackendUnavailable
from ...model.unet import UNet
from ...runtime.engine import Engine
from ...runtime.lora.files import Merger
from ..bench.ladder import Ladder, Plan
from ..bench.loras import changes_of_loras, drawn_loras, places
from ..bench.measure import Inputs, Row, synchronize, timed
from ..bench.stock import stock_unet
from ..laboratory.stand_ins import without_cudnn
from . import gpu_tests
from .code import get_code, get_kernels
from .jobs import Job
from .launches import beside_the_model
from .setting import Setting
from .teller import Teller

LORAS = (1, 10)
STEPS = 20
"""Calls that make an image, with a common sampler."""

WARM_UP = 5
"""Calls after which a CUDA graph is recorded, where one pays."""


def ladder(job: Job, setting: Setting, tell: Teller) -> None:
    """Time every way of computing the call, and count the kernels of some."""
    rows: dict[str, dict[str, Any]] = {}

    def on_row(row: Row) -> None:
        synchronize(setting.device)  # raises where the row before has spoilt this process
        if math.isnan(row.one_call_s):
            tell.at(row.name)
            return
        tell.at("")
        rows[row.name] = asdict(row)
        tell.know(rows=[*rows.values()], complete=False)

    plan = Plan(
        setting.architecture(job),
        setting.device,
        setting.dtype,
        # these compile or do nothing
        replace(setting.config, compile=not {"jit", "tensorrt"}.isdisjoint(job.variants)),
        [name for name in job.variants if name not in setting.without],
        setting.size(job),
        min(job.batch, 4) if setting.dry_run else job.batch,
        rounds=setting.rounds,
        profile=job.profile,
    )
    values = {name: p.data.cpu() for name, p in setting.parameters(job).items()}
    result = Ladder(plan, tell.say, on_row=on_row, values=values).measure()
    crashed = [
        {"name": n, "median_s": None, "note": "it ended the process"} for n in setting.without
    ]
    result["rows"] += [row for row in crashed if row["name"] in job.variants]
    tell.know(**result, complete=True)
    if setting.device.type == "cuda":
        tell.know(launches=beside_the_model(result, job.family, setting.models))


def loras(job: Job, setting: Setting, tell: Teller) -> None:
    """Time changes of the LoRAs, and calls with none, one and ten merged."""
    parameters, architecture = setting.parameters(job), setting.architecture(job)
    drawn = drawn_loras(architecture, max(LORAS), setting.dtype)
    rounds, changes = min(3, setting.rounds), {}
    for place in places(setting.device):
        if place in setting.without:
            continue
        tell.at(place)
        changes[place] = changes_of_loras(drawn, parameters, place, rounds, setting.device)
        tell.know(changes=changes)
    tell.at("")
    compute, inputs = _way("aoti", job, setting, parameters), setting.inputs(job)
    merger, calls = Merger(parameters), {}
    for count in (0, *LORAS):
        merger.set([(deltas, 0.5) for deltas in drawn[:count]])
        calls[count] = statistics.median(
            _seconds(compute, inputs, setting, WARM_UP + rounds)[WARM_UP:]
        )
        tell.know(calls=calls)


def first_image(job: Job, setting: Setting, tell: Teller) -> None:
    """Time the first image of a process, what comes before it, and a new size after it."""
    (way,) = job.variants
    tell.know(way=way, imports_s=time.time() - psutil.Process().create_time())
    parameters = setting.parameters(job)
    prepare_s, compute = timed(lambda: _way(way, job, setting, parameters), setting.device)
    first, second, *later = _seconds(compute, setting.inputs(job), setting, STEPS)
    tell.know(prepare_s=prepare_s, first_call_s=first, second_call_s=second, later_s=later[-1])
    tell.know(image_s=prepare_s + first + second + sum(later))
    first, second, *later = _seconds(compute, setting.inputs(job, more_pixels=64), setting, 6)
    tell.know(new_size_first_s=first, new_size_second_s=second, new_size_later_s=later[-1])
    if setting.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(setting.device)
        peak = torch.cuda.max_memory_allocated(setting.device)
        tell.know(peak_bytes=peak, card_bytes_used=total - free, card_bytes=total)


def _way(
    way: str, job: Job, setting: Setting, parameters: Mapping[str, nn.Parameter]
) -> Callable[..., Tensor]:
    """Return what computes a call: compiled code with CUDA graphs, or the WebUI's way with SDPA."""
    architecture = setting.architecture(job)
    if way != "aoti":
        return stock_unet(architecture, parameters, sdpa=True)
    engine = Engine(UNet(architecture).adopt(parameters), replace(setting.config, backend=way))
    engine.prepare()
    if engine.status.backend != way:
        raise BackendUnavailable(engine.status.reason or f"{way} is not available")
    return engine.compute


def _seconds(
    compute: Callable[..., Tensor], inputs: Inputs, setting: Setting, count: int
) -> list[float]:
    return [timed(lambda: compute(*inputs), setting.device)[0] for _ in range(count)]


KINDS: dict[str, Callable[[Job, Setting, Teller], None]] = {
    "code": get_code,
    "kernels": get_kernels,
    "ladder": ladder,
    "loras": loras,
    "first": first_image,
    "tests": gpu_tests.run,
}


def _end_with_parent() -> None:
    """Wait until the parent is gone or wants no more, and end: nobody would hear the rest."""
    sys.stdin.read()
    end(os.getpid())


def main() -> None:
    """Do one job."""
    tell = Teller(os.dup(1))
    os.dup2(2, 1)  # whatever a library prints must not mix with the lines
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job, setting = Job.from_dict(given["job"]), Setting.from_dict(given["setting"])
    stand_in = without_cudnn() if setting.pretended else None
    try:
        with torch.no_grad():
            KINDS[job.kind](job, setting, tell)
        tell(done=True)
    except (AccelError, RuntimeError, OSError, ImportError, ValueError) as e:
        traceback.print_exc()
        tell(error=f"{type(e).__name__}: {str(e).strip()[:2000]}")
    finally:
        del stand_in


if __name__ == "__main__":
    main()
