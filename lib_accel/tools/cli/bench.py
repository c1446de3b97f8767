"""`bench`: measure the ladder of variants on this machine."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...model.vae.network import DECODER, ENCODER
from ..bench import modelled
from ..bench.images import vae, whole
from ..bench.ladder import Ladder, Plan
from ..bench.table import table
from ..bench.variants import DEFAULT, VARIANTS
from ..terminal import say, show
from . import bench_webui
from .common import device_and_dtype, family, follow, make_config, write_files


def variants(text: str, known: Collection[str] = tuple(VARIANTS)) -> list[str]:
    """Parse `A,B`, names that are `known`, without repetitions."""
    names = [n for n in text.split(",") if n]
    unknown = [n for n in names if n not in known]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'}: expected some of {', '.join(known)}"
        )
    return list(dict.fromkeys(names))


def run(args: argparse.Namespace) -> int:
    """Measure, write the result and print it. Exit status 1 where no row could be timed."""
    if args.action == "webui":
        return bench_webui.run(args)
    if args.action:
        return _image(args) if args.action == "image" else _vae(args)
    if args.model:
        return _model(args)
    if args.stored or (args.device or "").startswith("cuda:sm_"):
        what = "--stored" if args.stored else f"--device {args.device}"
        raise argparse.ArgumentTypeError(f"{what} models a card: expected --model with it")
    device, dtype = device_and_dtype(args)
    plan = Plan(
        family(args.family),
        device,
        dtype,
        make_config(args, "auto"),
        variants(args.variants) if args.variants is not None else [*DEFAULT],
        args.size,
        args.batch,
        args.tokens,
        args.rounds,
        args.loras,
        args.profile,
    )
    args.out.mkdir(parents=True, exist_ok=True)  # before minutes of work
    with _threads(args.threads):
        result = ladder(plan).measure()
    write(result, args.out)
    show(result, args, table(result))
    return 0 if any(row["median_s"] for row in result["rows"]) else 1


def _vae(args: argparse.Namespace) -> int:
    """Measure the decoder or the encoder, write the result and print it."""
    device, dtype = device_and_dtype(args)
    names = variants(args.variants, vae.VARIANTS)
    config, kind = make_config(args, "auto"), ENCODER if args.encoder else DECODER
    given = (config, names, args.size, args.batch, args.rounds, args.channels)
    plan = vae.Plan(kind, device, dtype, *given)
    args.out.mkdir(parents=True, exist_ok=True)
    result = vae.measure(plan, say, lambda job: follow(job, "compiling"))
    keys = ("date", "what", "size", "batch", "dtype", "device")
    return _written(result, args, vae.table(result), [result[key] for key in keys])


def _image(args: argparse.Namespace) -> int:
    """Measure whole images, write the result and print it."""
    device, dtype = device_and_dtype(args)
    names = variants(args.variants, whole.VARIANTS)
    given = (make_config(args, "auto"), names, args.size, args.steps, args.rounds)
    plan = whole.Plan(family(args.family), device, dtype, *given, args.vae_channels)
    args.out.mkdir(parents=True, exist_ok=True)
    result = whole.measure(plan, say, lambda job: follow(job, "compiling"))
    keys = ("date", "architecture", "size", "dtype", "device")
    parts = [result[key] for key in keys]
    return _written(result, args, whole.table(result), [parts[0], "image", *parts[1:]])


def _written(
    result: dict[str, Any], args: argparse.Namespace, table: str, parts: Sequence[object]
) -> int:
    """Write a result, named after these parts, and print it; return the exit status."""
    write_files(args.out, parts, {"json": json.dumps(result, indent=1), "md": table})
    show(result, args, table)
    return 0 if any(row["median_s"] for row in result["rows"]) else 1


def _model(args: argparse.Namespace) -> int:
    """Count and model a call without a GPU, write the result and print it."""
    plan = modelled.plan(args)
    family(args.family)  # what cannot be read is refused before minutes of work
    if args.stored:
        result = modelled.stored(args.stored, plan)
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        say("Counting on a pretend card: a model, nothing runs on a GPU. It takes minutes.")
        result = modelled.measure(plan)
        texts = {"json": json.dumps(result, indent=1), "md": modelled.table(result)}
        sizes = (Path(plan.family).stem, plan.size, f"b{plan.batch}", plan.dtype, result["arch"])
        write_files(args.out, [result["date"], "model", *sizes], texts)
    show(result, args, modelled.table(result))
    return 0


def ladder(plan: Plan) -> Ladder:
    """Return a ladder that shows its progress on standard error."""
    size = f"{plan.size}x{plan.size}"
    say(f"{plan.architecture.name}, {size}, batch {plan.batch}, {plan.dtype}, {plan.device}")
    return Ladder(plan, say, lambda job: follow(job, "compiling"))


def write(result: dict[str, Any], folder: Path, *more: str) -> None:
    """Write the JSON and the table, named after the date, what was measured, where, and `more`."""
    keys = ("date", "architecture", "size", "batch", "dtype", "device")
    parts = [f"b{result[key]}" if key == "batch" else result[key] for key in keys]
    texts = {"json": json.dumps(result, indent=1), "md": table(result)}
    write_files(folder, [*parts, *more], texts)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
