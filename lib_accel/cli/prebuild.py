"""`prebuild`: make artifacts ahead, for servers and images."""

from __future__ import annotations

import argparse

from ..backends import get
from ..compiler.job import CompileJob
from ..config import Config
from ..environment import Target, probe
from ..errors import BackendUnavailable
from ..units import units_of
from .common import Commands, add_device_arguments, add_store_arguments, command, device_and_dtype, family, follow, make_store, say, show


def add(commands: Commands) -> None:
    p = command(commands, "prebuild", "compile artifacts ahead of time into the store", run)
    p.add_argument(
        "--family",
        action="append",
        type=family,
        required=True,
        metavar="NAME",
        help="sd1, sd2, sdxl, sdxl-refiner, or a checkpoint file; may be repeated. Inpainting and edit models need nothing of their own",
    )
    p.add_argument("--workers", type=int, help="compiling processes (default: by the machine)")
    add_store_arguments(p)
    add_device_arguments(p)


def run(args: argparse.Namespace) -> int:
    device, dtype = device_and_dtype(args)
    store = make_store(args)
    built = []
    for architecture in args.family:
        target = Target(units_of(architecture), dtype, device, probe(device))
        why = get("aoti").why_not(target, store, Config(store=args.store))
        if why:
            raise BackendUnavailable(why)
        job = CompileJob(target, store, args.workers)
        job.start()
        follow(job, architecture.name, args.json)
        job.result()
        artifact = store.get(target.key)
        assert artifact is not None
        seconds = round(job.progress().elapsed_s, 1)
        built.append(
            {"architecture": architecture.name, "key": artifact.key, "bytes": artifact.bytes, "compiled": job.compiled, "seconds": seconds}
        )
        say(f"{architecture.name}: {job.compiled} of {len(target.units)} units compiled, {artifact.bytes / 1e6:.1f} MB, {seconds} s")
    show({"artifacts": built, "store": str(store.root)}, args, f"store: {store.root}")
    return 0
