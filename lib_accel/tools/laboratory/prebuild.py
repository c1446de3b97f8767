"""Compile units ahead for a card elsewhere: `python3 -m lib_accel.tools.laboratory.prebuild`.

The file it writes is for `gpu --carried FILE` on the machine with the card. Kernels compute
nothing here, so the code is unchecked: its artifacts have no verdict, and no store serves them.
`gpu` checks each on the card. Inductor could time nothing here and took the first of its choices.
"""

from __future__ import annotations

import argparse
import queue
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ...compile.backends.aoti.worker_environment import made_with
from ...compile.backends.aoti.worker_process import Results, Worker
from ...compile.machine import probe
from ...compile.target import Target
from ...compile.units import describe
from ...errors import CompileFailed
from ...model.presets import PRESETS
from ...model.specs import Spec
from ...store import ArtifactStore
from ..gpu.jobs import architecture_of
from . import environment

STALL_S = 900.0
"""A worker that is silent for this long hangs."""


def main(arguments: list[str]) -> int:
    """Compile what is missing in the laboratory's environment, and write the export."""
    args = _parser().parse_args(arguments)
    if args.inside:
        return _compile(args)
    python, variables = environment.prepare(args.card, args.torch)
    command = [str(python), "-m", "lib_accel.tools.laboratory.prebuild", "--inside", *arguments]
    return subprocess.call(command, cwd=environment.ROOT, env=variables)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    text = "compute capability of the card times ten (default: 90)"
    parser.add_argument("--card", type=int, metavar="N", default=90, help=text)
    text = "version of torch on the machine with the card (default: 2.11.0)"
    parser.add_argument("--torch", metavar="VERSION", default="2.11.0", help=text)
    text = "once for each family, the most valuable first (default: sd1, then sdxl)"
    parser.add_argument("--family", action="append", choices=PRESETS, metavar="NAME", help=text)
    text = "compile the tiny UNets of `gpu --dry-run` instead"
    parser.add_argument("--dry-run", action="store_true", help=text)
    parser.add_argument("--dtype", metavar="NAME", default="float16")
    parser.add_argument("--workers", type=int, metavar="N", default=2)
    text = "file to write (default: .gpu/carried.zip); the units are kept beside it in a store"
    parser.add_argument("--to", type=Path, metavar="FILE", default=".gpu/carried.zip", help=text)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser


def _compile(args: argparse.Namespace) -> int:
    device = torch.device("cuda:0")
    args.to.parent.mkdir(parents=True, exist_ok=True)
    store = ArtifactStore(args.to.with_suffix(".store").absolute())
    wanted: dict[str, tuple[Target, Spec]] = {}
    for name in args.family or ("sd1", "sdxl"):
        architecture = architecture_of(name, args.dry_run)
        dtype, machine = getattr(torch, args.dtype), probe(device)
        target = Target.of_unet(architecture, dtype, device, machine)
        wanted |= {key: (target, unit) for unit, key in target.keys.items()}
    waiting: queue.SimpleQueue[tuple[Target, Spec]] = queue.SimpleQueue()
    for key, each in wanted.items():
        if not store.contains(key):
            waiting.put(each)
    with (
        tempfile.TemporaryDirectory(prefix="accel-prebuild-") as folder,
        ThreadPoolExecutor(args.workers) as pool,
    ):
        threads = [pool.submit(_serve, waiting, store, Path(folder)) for _ in range(args.workers)]
        for thread in threads:
            thread.result()
    store.export(wanted, args.to, None)
    print(f"{len(wanted)} units, {args.to.stat().st_size / 1e6:.1f} MB, are in {args.to}")
    return 0


def _serve(
    waiting: queue.SimpleQueue[tuple[Target, Spec]], store: ArtifactStore, folder: Path
) -> None:
    """Compile units in one process until none is waiting. Raises CompileFailed."""
    results: Results = queue.SimpleQueue()
    worker = None
    try:
        while True:
            try:
                target, unit = waiting.get_nowait()
            except queue.Empty:
                return
            worker = worker or Worker(folder, results, 1, target.machine)
            worker.give(unit, target)
            _wait(worker, results, describe(unit))
            made = made_with(target.machine)
            store.put(target.recipe(unit), worker.files(), name=target.name, made_with=made)
            worker.take_back()
            print(f"{target.name}: {describe(unit)}; {waiting.qsize()} are waiting", flush=True)
    finally:
        if worker is not None:
            worker.kill()


def _wait(worker: Worker, results: Results, name: str) -> None:
    """Wait until the unit is compiled. How its check ends means nothing here."""
    compiled = False
    while True:
        try:
            answer = results.get(timeout=STALL_S)[1] or {"error": worker.log_tail()}
        except queue.Empty:
            answer = {"error": f"the compiler was silent for {STALL_S:.0f} s"}
        compiled = compiled or answer.get("stage") == "check"
        if "error" in answer and not compiled:
            raise CompileFailed(f"{name} does not compile: {answer['error']}")
        if {"error", "ok"} & answer.keys():
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
