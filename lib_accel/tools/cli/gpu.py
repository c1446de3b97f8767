"""`gpu`: everything that has to be measured on a GPU, in one run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import AccelError
from ...runtime.engine import Engine
from ..bench.measure import timed
from ..bench.variants import Setup
from . import bench
from .common import (
    Commands,
    add_device_arguments,
    add_store_arguments,
    command,
    device_and_dtype,
    family,
    positive,
    say,
    show,
)

_MORE = """Steps in the order of what matters; one that would begin after --minutes is left out and said so. Each writes its own JSON and
table. Needs torch, triton and, for the reference rows, diffusers. --dry-run goes through all of it with tiny UNets, on a CPU as well."""


@dataclass(frozen=True)
class Step:
    name: str
    family: str
    size: int
    batch: int
    variants: str
    loras: str = "0"
    starts: bool = False  # a warm start and a new size as well


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


def add(commands: Commands) -> None:
    p = command(
        commands, "gpu", "measure everything that only a GPU can tell, in one run", run, _MORE
    )
    p.add_argument(
        "--minutes", type=positive, metavar="N", default=9, help="begin no step later than this"
    )
    p.add_argument(
        "--rounds", type=positive, metavar="N", default=20, help="timed calls of each variant"
    )
    p.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("bench-results"),
        help="folder for the JSON and the tables",
    )
    p.add_argument("--dry-run", action="store_true", help="tiny UNets: to see that it runs")
    add_store_arguments(p)
    add_device_arguments(p)


def run(args: argparse.Namespace) -> int:
    device, dtype = device_and_dtype(args)
    args.out.mkdir(parents=True, exist_ok=True)
    began, results, texts = time.monotonic(), [], []
    for step in STEPS:
        if time.monotonic() - began > 60 * args.minutes:
            say(f"{step.name}: left out, {args.minutes} minutes are over")
            texts.append(f"## {step.name}\nLeft out: {args.minutes} minutes were over.")
            continue
        say(f"== {step.name}")
        options = _options(args, _tiny(step) if args.dry_run else step)
        try:
            with torch.no_grad():
                result = bench.measure(options, device, dtype)
                if step.starts:
                    result["starts"] = starts(options, device, dtype)
        except (
            AccelError,
            torch.cuda.OutOfMemoryError,
        ) as e:  # SDXL on a small card: what was measured before is worth its while
            say(f"{step.name}: failed: {e}")
            texts.append(f"## {step.name}\nFailed: {e}")
            continue
        bench.write(result, options, step.name)  # some steps differ in nothing else
        results.append({"step": step.name, **result})
        texts.append("\n".join([f"## {step.name}", bench.table(result), *_starts_text(result)]))
    show({"steps": results}, args, "\n\n".join(texts))
    return (
        0
        if all(row["median_s"] for r in results for row in r["rows"] if row["name"] == "aoti")
        else 1
    )


def _tiny(step: Step) -> Step:
    return replace(
        step,
        family=f"{step.family}:32" if step.family == "sd1" else f"{step.family}:64",
        size=64,
        batch=min(step.batch, 4),
    )


def _options(args: argparse.Namespace, step: Step) -> argparse.Namespace:
    return argparse.Namespace(
        family=family(step.family),
        size=step.size,
        batch=step.batch,
        tokens=77,
        rounds=args.rounds,
        variants=bench.variants(step.variants),
        loras=bench.counts(step.loras),
        profile=True,
        out=args.out,
        store=args.store,
        store_mib=args.store_mib,
    )


def starts(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Seconds: from nothing but the store and the weights to the end of the first call; the first and a later call of a new size."""
    setup = bench.make_setup(options, device, dtype)
    engine, first = _warm_start(setup, device)
    other = argparse.Namespace(**{**vars(options), "size": options.size + 64})
    inputs = bench.make_inputs(setup.architecture, other, device, dtype)
    times = [timed(lambda: engine.compute(*inputs), device)[0] for _ in range(6)]
    engine.close()
    return {
        "warm_start_s": first,
        "new_size_first_s": times[0],
        "new_size_second_s": times[1],
        "new_size_later_s": min(times[2:]),
    }


def _warm_start(setup: Setup, device: torch.device) -> tuple[Engine, float]:
    began = time.perf_counter()
    engine = Engine(setup.donor, replace(setup.config, backend="auto"))
    engine.prepare()
    timed(lambda: engine.compute(*setup.inputs), device)
    return engine, time.perf_counter() - began


def _starts_text(result: dict[str, Any]) -> Sequence[str]:
    return [
        ", ".join(
            f"{name.removesuffix('_s').replace('_', ' ')} {s:.3f} s"
            for name, s in result.get("starts", {}).items()
        )
    ]
