"""`bench`: the ladder. One row a variant, in one process, interleaved, medians."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..architecture import Architecture
from ..bench.measure import Call, Row, flops, interleave, matmul_rate, relative_error
from ..bench.reference import Reference
from ..bench.variants import DEFAULT, VARIANTS, Setup, build
from ..checkpoint import random_weights
from ..environment import probe
from ..errors import AccelError
from ..lora import Delta, Merger, random_deltas
from ..unet import UNet
from .common import Commands, add_engine_arguments, command, device_and_dtype, family, make_config, say, show


def add(commands: Commands) -> None:
    p = command(commands, "bench", "measure the ladder of variants on this machine", run)
    p.add_argument(
        "--family", type=family, default="sd1", help="sd1, sd2, sdxl, sdxl-refiner (sd1:64 for another width), or a checkpoint file"
    )
    p.add_argument("--size", type=int, default=512, help="width and height in pixels")
    p.add_argument("--batch", type=int, default=2, help="batch of the UNet call; 2 is one image with guidance")
    p.add_argument("--tokens", type=int, default=77, help="length of the prompt's embedding")
    p.add_argument("--rounds", type=int, default=5, help="timed calls of each variant, after two warm-up calls")
    p.add_argument("--variants", default=",".join(DEFAULT), help=f"of {', '.join(VARIANTS)}")
    p.add_argument(
        "--loras",
        default="0",
        help="numbers of merged LoRAs (rank 32, all transformer layers), as 0,1,10: more rows of each engine variant",
    )
    p.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    p.add_argument("--out", type=Path, default=Path("bench-results"), help="folder for the JSON and the table")
    add_engine_arguments(p)


def run(args: argparse.Namespace) -> int:
    device, dtype = device_and_dtype(args)
    names = [n for n in args.variants.split(",") if n]
    unknown = [n for n in names if n not in VARIANTS]
    if unknown:
        raise AccelError(f"--variants: {', '.join(unknown)} unknown; expected some of {', '.join(VARIANTS)}")
    with _threads(args.threads), torch.no_grad():
        result = measure(args, names, device, dtype)
    text = table(result)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f"{result['date']}-{result['architecture']}-{result['size']}-b{result['batch']}-{result['dtype']}-{device.type}".replace(
        " ", "-"
    ).lower()
    (args.out / f"{stem}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (args.out / f"{stem}.md").write_text(text + "\n", encoding="utf-8")
    show(result, args, f"{text}\n\nwritten to {args.out / stem}.json and .md")
    return 0


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(args: argparse.Namespace, names: list[str], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    a: Architecture = args.family
    donor = UNet(a).adopt({k: nn.Parameter(p.to(device), requires_grad=False) for k, p in random_weights(a, dtype, 0).items()})
    inputs = make_inputs(a, args, device, dtype)
    setup = Setup(a, donor, inputs, make_config(args))
    say(f"{a.name}, {args.size}x{args.size}, batch {args.batch}, {dtype}, {device}: float reference ...")
    reference = float_reference(setup)
    rows: dict[str, Row] = {name: Row(name) for name in names}
    calls: dict[str, Call] = {}
    for name in names:
        say(f"preparing {name} ...")
        try:
            calls[name], rows[name].compile_s = build(name, setup)
        except (AccelError, RuntimeError) as e:
            rows[name].note = str(e).strip().splitlines()[0]
            say(f"  left out: {rows[name].note}")
            continue
        rows[name].error = relative_error(calls[name](), reference)
    with tqdm(total=args.rounds, desc="rounds") as bar:
        interleave(calls, rows, device, args.rounds, lambda _: bar.update())
    rate = matmul_rate(dtype, device)
    lora = _lora_rows(args, setup, calls, device)
    return _result(args, setup, rows, flops(a, inputs), rate, lora)


def make_inputs(
    a: Architecture, args: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(args.batch, a.in_channels, args.size // 8, args.size // 8, generator=g)
    context = torch.randn(args.batch, args.tokens, a.context_dim, generator=g)
    y = torch.randn(args.batch, a.adm_channels, generator=g) if a.adm_channels else None
    t = torch.full((args.batch,), 500.0)
    return tuple(None if v is None else v.to(device, dtype) for v in (x, t, context, y))  # type: ignore[return-value]


def float_reference(setup: Setup) -> Tensor:
    """The same call in float32 (float64 where the weights are float32), by the independent implementation."""
    precise = torch.float64 if setup.donor.dtype == torch.float32 else torch.float32
    weights = {k: nn.Parameter(p.to(precise), requires_grad=False) for k, p in setup.parameters.items()}
    inputs = [None if t is None else t.to(precise) for t in setup.inputs]
    out = Reference(setup.architecture, weights, sdpa=True)(*inputs)  # type: ignore[arg-type]
    del weights
    gc.collect()
    return out


def _lora_rows(args: argparse.Namespace, setup: Setup, calls: dict[str, Call], device: torch.device) -> list[dict[str, Any]]:
    counts = [int(n) for n in args.loras.split(",")]
    engines = [n for n in calls if n.startswith(("aoti", "eager", "jit"))]
    if counts == [0]:
        return []
    merger = Merger(dict(setup.parameters))
    loras: list[dict[str, Delta]] = [random_deltas(setup.architecture, 32, seed) for seed in range(max(counts))]
    out = []
    for count in counts:
        start = time.perf_counter()
        merger.set([(d, 0.5) for d in loras[:count]])
        merged = time.perf_counter() - start
        rows = {name: Row(name) for name in engines}
        interleave({n: calls[n] for n in engines}, rows, device, args.rounds, lambda _: None)
        out.append({"loras": count, "merge_s": merged, "seconds": {n: r.median for n, r in rows.items()}})
    merger.set([])
    return out


def _result(
    args: argparse.Namespace, setup: Setup, rows: dict[str, Row], operations: int, rate: float, lora: list[dict[str, Any]]
) -> dict[str, Any]:
    machine = probe(setup.device)
    weights = sum(p.nbytes for p in setup.parameters.values())
    return {
        "date": datetime.date.today().isoformat(),
        "architecture": setup.architecture.name,
        "size": args.size,
        "batch": args.batch,
        "tokens": args.tokens,
        "dtype": str(setup.donor.dtype).removeprefix("torch."),
        "rounds": args.rounds,
        "machine": {**machine.identity(), "threads": torch.get_num_threads(), "cores": os.cpu_count(), **_driver(setup.device)},
        "flops": operations,
        "matmul_flops_per_s": rate,
        "floor_s": operations / rate,
        "weight_bytes": weights,
        "rows": [
            {
                "name": r.name,
                "median_s": r.median,
                "min_s": min(r.seconds, default=float("nan")),
                "max_s": max(r.seconds, default=float("nan")),
                "of_matmul_rate": operations / r.median / rate if r.seconds else float("nan"),
                "compile_s": r.compile_s,
                "peak_bytes": weights + r.peak_bytes,
                "error": r.error,
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


def table(r: dict[str, Any]) -> str:
    """The result in Markdown."""
    m = r["machine"]
    base = next((row["median_s"] for row in r["rows"] if row["median_s"] == row["median_s"]), float("nan"))
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
        if row["median_s"] != row["median_s"]:
            lines.append(f"| {row['name']} | - | | | | | | {row['note']} |")
            continue
        lines.append(
            f"| {row['name']} | {row['median_s']:.4g} | {row['min_s']:.4g} - {row['max_s']:.4g} | {base / row['median_s']:.2f}x "
            f"| {row['of_matmul_rate']:.0%} | {row['compile_s']:.1f} | {row['peak_bytes'] / 2**30:.2f} | {row['error']:.1e} |"
        )
    if r["loras"]:
        lines += ["", "| merged LoRAs | merged in s | " + " | ".join(r["loras"][0]["seconds"]) + " |"]
        lines.append("| --- " * (2 + len(r["loras"][0]["seconds"])) + "|")
        lines += [
            f"| {x['loras']} | {x['merge_s']:.2f} | " + " | ".join(f"{s:.4g}" for s in x["seconds"].values()) + " |" for x in r["loras"]
        ]
    return "\n".join(lines)
