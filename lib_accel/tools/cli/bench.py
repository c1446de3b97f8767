"""`bench`: the ladder. One row a variant, in one process, interleaved, medians."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...compile.machine import probe
from ...errors import AccelError
from ...model.architecture import Architecture
from ...model.precision import relative_error
from ...model.unet import UNet
from ...runtime.lora_files import Merger, random_deltas
from ...runtime.lora_merge import LowRank
from ..bench.kernels import kernels
from ..bench.measure import Call, Row, flops, interleave, matmul_rate, timed
from ..bench.precise import precise_call
from ..bench.variants import DEFAULT, VARIANTS, Setup, build
from ..checkpoint import random_weights
from .common import (
    Commands,
    add_device_arguments,
    add_store_arguments,
    command,
    device_and_dtype,
    family,
    follow,
    image_size,
    make_config,
    positive,
    say,
    show,
)

_MORE = f"""One row a variant, all in this process, over the same weights (random ones) and inputs; timed in turn, so that a machine that
drifts drifts for all of them. Close other programs first, and give a GPU the same clock throughout.

variants ({", ".join(DEFAULT)} by default):
  reference             diffusers' UNet with its plain attention (pip install diffusers)
  reference+sdpa        the same with fused attention
  compile               the same under torch.compile (compile-max-autotune: in that mode)
  openvino              OpenVINO on a CPU (pip install openvino)
  eager, eager+graphs   our UNet run by torch, and with CUDA graphs
  jit                   our units under torch.compile
  aoti, aoti+graphs     our compiled artifact, from the store or made first, and with CUDA graphs
  aoti+blocks           the same, driven block by block as ControlNet does
  eager+control, aoti+control   that with a control network beside it (the error then tells nothing: it changes the result)

examples:
  python -m lib_accel bench
  python -m lib_accel bench --family sdxl --size 1024 --dtype float16 --variants reference+sdpa,aoti,aoti+graphs --loras 0,1,10
  python -m lib_accel bench --family sd1:64 --size 256 --rounds 3       a quick look: a fifth of the real width"""


def add(commands: Commands) -> None:
    p = command(commands, "bench", "measure the ladder of variants on this machine", run, _MORE)
    p.add_argument(
        "--family",
        type=family,
        metavar="NAME",
        default="sd1",
        help="sd1, sd2, sdxl, sdxl-refiner (sd1:64 for another width), or a checkpoint file, for its architecture",
    )
    p.add_argument(
        "--size", type=image_size, metavar="N", default=512, help="width and height in pixels"
    )
    p.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        default=2,
        help="batch of the UNet call; 2 is one image with guidance",
    )
    p.add_argument(
        "--tokens", type=positive, metavar="N", default=77, help="length of the prompt's embedding"
    )
    p.add_argument(
        "--rounds",
        type=positive,
        metavar="N",
        default=5,
        help="timed calls of each variant, after two warm-up calls",
    )
    p.add_argument(
        "--variants",
        type=variants,
        metavar="A,B",
        default=",".join(DEFAULT),
        help="which rows, in this order",
    )
    p.add_argument(
        "--loras",
        type=counts,
        metavar="N,N",
        default="0",
        help="numbers of merged LoRAs (rank 32, all transformer layers), as 0,1,10: tables of calls with them, and of changing them",
    )
    p.add_argument(
        "--profile", action="store_true", help="a table of kernels as well, of the last variant"
    )
    p.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (default: torch's own choice)"
    )
    p.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("bench-results"),
        help="folder for the JSON and the table",
    )
    add_store_arguments(p)
    add_device_arguments(p)


def variants(text: str) -> list[str]:
    names = [n for n in text.split(",") if n]
    unknown = [n for n in names if n not in VARIANTS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'}: expected some of {', '.join(VARIANTS)}"
        )
    return list(dict.fromkeys(names))


def counts(text: str) -> list[int]:
    if not all(n.isdecimal() for n in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers, as 0,1,10")
    return [int(n) for n in text.split(",")]


def run(args: argparse.Namespace) -> int:
    device, dtype = device_and_dtype(args)
    args.out.mkdir(parents=True, exist_ok=True)  # before minutes of work
    with _threads(args.threads), torch.no_grad():
        result = measure(args, device, dtype)
    write(result, args)
    show(result, args, table(result))
    return 0 if any(row["median_s"] for row in result["rows"]) else 1


def write(result: dict[str, Any], args: argparse.Namespace, *more: str) -> None:
    """As JSON and as a table, under a name that says when, what and where, and `more`."""
    parts = (
        result["date"],
        result["architecture"],
        args.size,
        f"b{args.batch}",
        result["dtype"],
        result["device"],
        *more,
    )
    stem = re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, parts)).lower())
    (args.out / f"{stem}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (args.out / f"{stem}.md").write_text(table(result) + "\n", encoding="utf-8")
    say(f"written to {args.out / stem}.json and .md")


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_setup(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Setup:
    a: Architecture = args.family
    donor = UNet(a).adopt(
        {
            k: nn.Parameter(p.to(device), requires_grad=False)
            for k, p in random_weights(a, dtype, 0).items()
        }
    )
    config = make_config(args, backend="auto")
    return Setup(
        a, donor, make_inputs(a, args, device, dtype), config, lambda job: follow(job, "compiling")
    )


def measure(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    setup = make_setup(args, device, dtype)
    a, inputs = setup.architecture, setup.inputs
    say(
        f"{a.name}, {args.size}x{args.size}, batch {args.batch}, {dtype}, {device}: the call at higher precision ..."
    )
    reference = precise_call(a, setup.parameters, *inputs)
    rows: dict[str, Row] = {name: Row(name) for name in args.variants}
    calls: dict[str, Call] = {}
    for name in args.variants:
        say(f"preparing {name} ...")
        try:
            calls[name], rows[name].compile_s = build(name, setup)
        except (AccelError, RuntimeError) as e:
            rows[name].note = str(e).strip().splitlines()[0]
            say(f"  left out: {rows[name].note}")
            continue
        rows[name].error = relative_error(calls[name](), reference)
    _interleave(calls, rows, device, args.rounds, "calls")
    rate = matmul_rate(dtype, device)
    lora, changes = _lora_rows(args, setup, calls, device), _change_rows(args, setup, device, dtype)
    costs = kernels(list(calls.values())[-1], device) if args.profile and calls else []
    return {
        **_result(args, setup, rows, flops(a, inputs), rate, lora),
        "lora_changes": changes,
        "profiled": list(calls)[-1:],
        "kernels": costs,
    }


def make_inputs(
    a: Architecture, args: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(args.batch, a.in_channels, args.size // 8, args.size // 8, generator=g)
    context = torch.randn(args.batch, args.tokens, a.context_dim, generator=g)
    y = torch.randn(args.batch, a.adm_channels, generator=g) if a.adm_channels else None
    t = torch.full((args.batch,), 500.0)
    return tuple(None if v is None else v.to(device, dtype) for v in (x, t, context, y))  # type: ignore[return-value]


def _interleave(
    calls: dict[str, Call], rows: dict[str, Row], device: torch.device, rounds: int, what: str
) -> None:
    with tqdm(total=(1 + rounds) * len(calls), desc=what) as bar:
        interleave(calls, rows, device, rounds, bar.update)


def _lora_rows(
    args: argparse.Namespace, setup: Setup, calls: dict[str, Call], device: torch.device
) -> list[dict[str, Any]]:
    """Seconds a call by number of merged LoRAs, the numbers taken in turn as the variants are; medians after one round to warm up."""
    following = [
        n for n in calls if n.startswith(("reference", "eager", "jit", "aoti"))
    ]  # which read the weights anew in each call
    if args.loras == [0] or not following:
        return []
    merger = Merger(dict(setup.parameters))
    loras: list[dict[str, LowRank]] = [
        random_deltas(setup.architecture, 32, seed) for seed in range(max(args.loras))
    ]
    seconds: dict[int, dict[str, list[float]]] = {
        count: {name: [] for name in following} for count in args.loras
    }
    with tqdm(total=(1 + args.rounds) * len(args.loras) * len(following), desc="LoRAs") as bar:
        for count in (1 + args.rounds) * args.loras:
            wanted = [(d, 0.5) for d in loras[:count]]
            merger.set(wanted)
            for name in following:
                calls[
                    name
                ]()  # the first after a merge also pays for memory that the merge has let go of
                seconds[count][name].append(timed(calls[name], device)[0])
                bar.update()
    merger.set([])
    return [
        {"loras": count, "seconds": {n: statistics.median(s[1:]) for n, s in by.items()}}
        for count, by in seconds.items()
    ]


def _change_rows(
    args: argparse.Namespace, setup: Setup, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Median seconds to change the set of LoRAs (rank 32, all transformer layers, factors in ordinary memory), by where bases are kept."""
    if args.loras == [0]:
        return []
    a, b = (
        {
            name: replace(f, up=f.up.to(dtype), down=f.down.to(dtype))
            for name, f in random_deltas(setup.architecture, 32, seed).items()
        }
        for seed in (1, 2)
    )
    changes = {
        "first": [(a, 0.8)],
        "another": [(b, 0.8)],
        "strength alone": [(b, 0.5)],
        "two": [(a, 0.8), (b, 0.5)],
        "none": [],
    }
    rows = []
    for where in ("gpu", "pinned", "host") if device.type == "cuda" else ("host",):
        seconds: dict[str, list[float]] = {name: [] for name in changes}
        for _ in range(min(args.rounds, 7)):
            merger = Merger(dict(setup.parameters), where)
            for name, wanted in changes.items():
                if device.type == "cuda":
                    torch.cuda.empty_cache()  # as the WebUI does before it reads networks
                seconds[name].append(timed(lambda m=merger, w=wanted: m.set(w), device)[0])
        rows.append(
            {"bases": where, "seconds": {name: statistics.median(s) for name, s in seconds.items()}}
        )
    return rows


def _result(
    args: argparse.Namespace,
    setup: Setup,
    rows: dict[str, Row],
    operations: int,
    rate: float,
    lora: list[dict[str, Any]],
) -> dict[str, Any]:
    machine = probe(setup.device)
    weights = sum(p.nbytes for p in setup.parameters.values())
    return {
        "date": datetime.date.today().isoformat(),
        "architecture": setup.architecture.name,
        "device": setup.device.type,
        "size": args.size,
        "batch": args.batch,
        "tokens": args.tokens,
        "dtype": str(setup.donor.dtype).removeprefix("torch."),
        "rounds": args.rounds,
        "machine": {
            **machine.identity(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            **_driver(setup.device),
        },
        "flops": operations,
        "matmul_flops_per_s": rate,
        "floor_s": operations / rate,
        "weight_bytes": weights,
        "rows": [
            {
                "name": r.name,
                "median_s": r.median if r.seconds else None,
                "min_s": min(r.seconds, default=None),
                "max_s": max(r.seconds, default=None),
                "of_matmul_rate": operations / r.median / rate if r.seconds else None,
                "compile_s": r.compile_s if r.seconds else None,
                "peak_bytes": weights + r.peak_bytes if r.seconds else None,
                "error": r.error if r.seconds else None,
                "note": r.note,
            }
            for r in rows.values()
        ],
        "loras": lora,
    }


def _driver(device: torch.device) -> dict[str, str]:
    if device.type != "cuda":
        return {}
    return {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}


def _seconds_table(
    title: str, rows: dict[Any, dict[str, float]], text: Callable[[float], str]
) -> list[str]:
    columns = list(next(iter(rows.values())))
    lines = ["", f"| {title} | " + " | ".join(columns) + " |", "| --- " * (1 + len(columns)) + "|"]
    return lines + [
        f"| {name} | " + " | ".join(map(text, seconds.values())) + " |"
        for name, seconds in rows.items()
    ]


def table(r: dict[str, Any]) -> str:
    """The result in Markdown."""
    m = r["machine"]
    base = next((row["median_s"] for row in r["rows"] if row["median_s"]), 0.0)
    lines = [
        f"{r['architecture']}, {r['size']}x{r['size']}, batch {r['batch']}, {r['tokens']} tokens, {r['dtype']}; {m['device_name']}, "
        f"{m['threads']} threads, torch {m['torch']}, triton {m['triton']}; {r['date']}.",
        f"{r['flops'] / 1e12:.3f} TFLOP a call; measured matmul rate {r['matmul_flops_per_s'] / 1e12:.3f} TFLOP/s, "
        f"so the floor is {r['floor_s']:.4g} s.",
        "",
        "| variant | s a call (median of "
        + str(r["rounds"])
        + ") | min - max | speed-up | of matmul rate | made in s | peak GiB | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in r["rows"]:
        if not row["median_s"]:
            lines.append(f"| {row['name']} | - | | | | | | {row['note']} |")
            continue
        lines.append(
            f"| {row['name']} | {row['median_s']:.4g} | {row['min_s']:.4g} - {row['max_s']:.4g} | {base / row['median_s']:.2f}x "
            f"| {row['of_matmul_rate']:.0%} | {row['compile_s']:.1f} | {row['peak_bytes'] / 2**30:.2f} | {row['error']:.1e} |"
        )
    if r["loras"]:
        lines += _seconds_table(
            "merged LoRAs, s a call",
            {x["loras"]: x["seconds"] for x in r["loras"]},
            lambda s: f"{s:.4g}",
        )
        changes = {x["bases"]: x["seconds"] for x in r["lora_changes"]}
        lines += _seconds_table("LoRAs changed, ms; bases in", changes, lambda s: f"{1000 * s:.1f}")
    if r["kernels"]:
        lines += [
            "",
            f"| kernels of {r['profiled'][0]} | launches a call | ms | share |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| `{k['name'][:90]}` | {k['launches']:.0f} | {k['ms']:.3f} | {k['share']:.1%} |"
            for k in r["kernels"]
        ]
    notes = [
        f"Speed-up: over the first row. Peak: the weights ({r['weight_bytes'] / 2**30:.2f} GiB) and the most one call took besides; a copy "
        "of the weights that a runtime makes for itself (OpenVINO) is not in it. Error: relative, of one call, against "
        + ("float64." if r["dtype"] == "float32" else "float32.")
    ]
    return "\n".join([*lines, "", *notes])
