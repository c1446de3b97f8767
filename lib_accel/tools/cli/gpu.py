"""`gpu`: measure everything that only a GPU can show, in one run."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...errors import AccelError
from ...model.random_weights import random_weights
from ...runtime.engine import Engine
from ..bench.ladder import Plan, make_inputs
from ..bench.measure import Inputs, timed
from ..bench.table import table
from ..bench.weights import WeightCopy
from ..terminal import say, show
from . import bench
from .arguments.bench import counts
from .common import default_device, device_and_dtype, family, make_config, no_gpu


@dataclass(frozen=True)
class Step:
    """One run of the ladder. `starts` also measures a warm start and a first call of a new size."""

    name: str
    family: str
    size: int
    batch: int
    variants: str
    loras: str = "0"
    starts: bool = False


STEPS = (
    Step(
        "SD1.5, one image",
        "sd1",
        512,
        2,
        "reference,reference+sdpa,eager,eager+graphs,aoti,aoti+graphs",
        "0,1,10",
        starts=True,
    ),
    Step(
        "SDXL, one image",
        "sdxl",
        1024,
        2,
        "reference+sdpa,eager+graphs,aoti,aoti+graphs",
        "0,1,10",
        starts=True,
    ),
    Step("SD1.5, eight images", "sd1", 512, 16, "reference+sdpa,aoti,aoti+graphs"),
    Step("SD1.5, with a ControlNet", "sd1", 512, 2, "aoti,aoti+blocks,eager+control,aoti+control"),
    Step("SD1.5, large", "sd1", 1024, 2, "reference+sdpa,aoti+graphs"),
    Step(
        "SD1.5, torch.compile at its best",
        "sd1",
        512,
        2,
        "reference+sdpa,compile-max-autotune,aoti+graphs",
    ),
)


def run(args: argparse.Namespace) -> int:
    """Run the steps. Exit status 1 where an `aoti` row could not be timed."""
    if default_device() == "cpu" and not (args.device or args.dry_run):
        raise AccelError(
            f"{no_gpu()}. A CPU needs hours for what `gpu` measures; --device cpu insists on it"
        )
    device, dtype = device_and_dtype(args)
    args.out.mkdir(parents=True, exist_ok=True)
    began, results, texts = time.monotonic(), [], []
    for step in STEPS:
        if time.monotonic() - began > 60 * args.minutes:
            say(f"{step.name}: left out, {args.minutes} minutes are over")
            texts.append(f"## {step.name}\nLeft out: {args.minutes} minutes were over.")
            continue
        say(f"== {step.name}")
        try:
            result = _measure(_plan(args, step, device, dtype), step)
        except (AccelError, torch.cuda.OutOfMemoryError) as e:
            # SDXL on a small card: the steps before it have been measured and are kept
            say(f"{step.name}: failed: {e}")
            texts.append(f"## {step.name}\nFailed: {e}")
            continue
        bench.write(result, args.out, step.name)  # some steps differ in nothing else
        results.append({"step": step.name, **result})
        texts.append("\n".join([f"## {step.name}", table(result), _starts_text(result)]))
    show({"steps": results}, args, "\n\n".join(texts))
    aoti = [row for r in results for row in r["rows"] if row["name"] == "aoti"]
    return 0 if all(row["median_s"] for row in aoti) else 1


def _plan(args: argparse.Namespace, step: Step, device: torch.device, dtype: torch.dtype) -> Plan:
    if args.dry_run:
        width = 32 if step.family == "sd1" else 64
        tiny = f"{step.family}:{width}"
        step = replace(step, family=tiny, size=64, batch=min(step.batch, 4))
    return Plan(
        family(step.family),
        device,
        dtype,
        make_config(args, "auto"),
        bench.variants(step.variants),
        step.size,
        step.batch,
        rounds=args.rounds,
        loras=counts(step.loras),
        profile=True,
    )


def _measure(plan: Plan, step: Step) -> dict[str, Any]:
    result = bench.ladder(plan).measure()
    return {**result, "starts": starts(plan)} if step.starts else result


@torch.no_grad()
def starts(plan: Plan) -> dict[str, float]:
    """Return the seconds of a warm start and of calls of a new size.

    A warm start reaches from the store and the weights in memory to the end of the first call.
    """
    values = {n: p.data for n, p in random_weights(plan.architecture, plan.dtype, 0).items()}
    weights = WeightCopy(plan.architecture, values, plan.device)
    inputs, others = (_inputs(plan, size) for size in (plan.size, plan.size + 64))
    began = time.perf_counter()
    engine = Engine(weights.unet, plan.config)
    engine.prepare()
    timed(lambda: engine.compute(*inputs), plan.device)
    warm_start = time.perf_counter() - began
    times = [timed(lambda: engine.compute(*others), plan.device)[0] for _ in range(6)]
    engine.close()
    return {
        "warm_start_s": warm_start,
        "new_size_first_s": times[0],
        "new_size_second_s": times[1],
        "new_size_later_s": min(times[2:]),
    }


def _inputs(plan: Plan, size: int) -> Inputs:
    return make_inputs(plan.architecture, plan.batch, size, plan.tokens, plan.device, plan.dtype)


def _starts_text(result: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} {s:.3f} s"
        for name, s in result.get("starts", {}).items()
    )
