"""`bench`: measure the ladder of variants on this machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..bench.ladder import Ladder, Plan
from ..bench.table import table
from ..bench.variants import DEFAULT, VARIANTS
from . import bench_webui
from .common import (
    Commands,
    add_device_arguments,
    add_results_argument,
    add_store_arguments,
    command,
    device_and_dtype,
    family,
    follow,
    image_size,
    make_config,
    number_up_to,
    positive,
    say,
    show,
)

_MORE = f"""Every variant is one row. All rows run in this process on the same inputs and on random
weights of the same values, and are timed in turn. Close other programs first, and keep the clock
of a GPU fixed. Each group of rows (diffusers', torch.compile's, ours by backend) has its own copy
of the weights. Where the copies do not fit into memory together, the groups take turns.

variants (default: {", ".join(DEFAULT)}):
  stock                 what the WebUI does by itself: its default attention
  reference             diffusers' UNet with plain attention (pip install diffusers)
  reference+sdpa        the same with fused attention
  compile               the same under torch.compile
  compile-max-autotune  the same under torch.compile in the mode max-autotune
  openvino              OpenVINO on a CPU (pip install openvino)
  eager, eager+graphs   our UNet run by torch, and with CUDA graphs
  jit                   our units under torch.compile
  aoti, aoti+graphs     our compiled artifact from the store (made first if it is not there), and
                        with CUDA graphs
  aoti+blocks           the same, called layer by layer as ControlNet does
  eager+control, aoti+control
                        with a control network beside it, which changes the result: ignore its error

examples:
  python -m lib_accel bench
  python -m lib_accel bench --family sdxl --size 1024 --dtype float16 \\
      --variants reference+sdpa,aoti,aoti+graphs --loras 0,1,10
  python -m lib_accel bench --family sd1:64 --size 256 --rounds 3    a fifth of the real width"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    p = command(commands, "bench", "measure the ladder of variants on this machine", run, _MORE)
    text = "sd1, sd2, sdxl, sdxl-refiner (sd1:64 for another width), or a checkpoint file"
    p.add_argument("--family", type=family, metavar="NAME", default="sd1", help=text)
    text = "width and height in pixels"
    p.add_argument("--size", type=image_size, metavar="N", default=512, help=text)
    text = "batch of the UNet call; 2 is one image with guidance"
    p.add_argument("--batch", type=positive, metavar="N", default=2, help=text)
    text = "length of the prompt's embedding"
    p.add_argument("--tokens", type=positive, metavar="N", default=77, help=text)
    text = "timed calls of each variant, after three calls to warm up"
    p.add_argument("--rounds", type=positive, metavar="N", default=5, help=text)
    text = "which rows, in this order"
    p.add_argument("--variants", type=variants, metavar="A,B", default=",".join(DEFAULT), help=text)
    text = (
        "numbers of merged LoRAs (rank 32, all transformer layers), such as 0,1,10: adds tables of "
        "calls with them and of changing them"
    )
    p.add_argument("--loras", type=counts, metavar="N,N", default="0", help=text)
    text = "add a table of the kernels of the last variant"
    p.add_argument("--profile", action="store_true", help=text)
    text = "CPU threads (default: torch's own choice)"
    p.add_argument("--threads", type=number_up_to(1024), metavar="N", help=text)
    add_results_argument(p)
    add_store_arguments(p)
    add_device_arguments(p)
    actions = p.add_subparsers(dest="action", title="instead of the ladder", metavar="webui")
    bench_webui.add(actions)


def variants(text: str) -> list[str]:
    """Parse `A,B`, without repetitions."""
    names = [n for n in text.split(",") if n]
    unknown = [n for n in names if n not in VARIANTS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'}: expected some of {', '.join(VARIANTS)}"
        )
    return list(dict.fromkeys(names))


def counts(text: str) -> list[int]:
    """Parse `0,1,10`."""
    if not all(n.isdecimal() and len(n) < 5 for n in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers, such as 0,1,10")
    return [int(n) for n in text.split(",")]


def run(args: argparse.Namespace) -> int:
    """Measure, write the result and print it. Exit status 1 where no row could be timed."""
    device, dtype = device_and_dtype(args)
    args.out.mkdir(parents=True, exist_ok=True)  # before minutes of work
    plan = Plan(
        args.family,
        device,
        dtype,
        make_config(args, "auto"),
        args.variants,
        args.size,
        args.batch,
        args.tokens,
        args.rounds,
        args.loras,
        args.profile,
    )
    with _threads(args.threads):
        result = ladder(plan).measure()
    write(result, args.out)
    show(result, args, table(result))
    return 0 if any(row["median_s"] for row in result["rows"]) else 1


def ladder(plan: Plan) -> Ladder:
    """Return a ladder that shows its progress on standard error."""
    size = f"{plan.size}x{plan.size}"
    say(f"{plan.architecture.name}, {size}, batch {plan.batch}, {plan.dtype}, {plan.device}")
    return Ladder(plan, say, lambda job: follow(job, "compiling"))


def write(result: dict[str, Any], folder: Path, *more: str) -> None:
    """Write the JSON and the table, named after the date, what was measured, where, and `more`."""
    keys = ("date", "architecture", "size", "batch", "dtype", "device")
    parts = [f"b{result[key]}" if key == "batch" else str(result[key]) for key in keys]
    stem = re.sub(r"[^a-z0-9.]+", "-", "-".join([*parts, *more]).lower())
    (folder / f"{stem}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (folder / f"{stem}.md").write_text(table(result) + "\n", encoding="utf-8")
    say(f"written to {folder / stem}.json and .md")


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
