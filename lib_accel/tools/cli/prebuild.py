"""`prebuild`: make artifacts ahead, for servers and images."""

from __future__ import annotations

import argparse

from ...compile.aoti.backend import Aoti
from ...compile.aoti.job import CompileJob
from ...compile.machine import probe
from ...compile.target import Target
from ...compile.units import units_of
from ...config import Config
from ...errors import BackendUnavailable
from .common import (
    Commands,
    add_device_arguments,
    add_store_arguments,
    command,
    device_and_dtype,
    family,
    follow,
    make_store,
    positive,
    show,
)

_MORE = """Compiled code depends on the architecture, the dtype, the GPU (or CPU) model and the torch version; never on the checkpoint,
the size, the batch, the prompt's length or a LoRA. So one run per architecture is all there is to make. What is in the store
already, or shared with another architecture in it, is not compiled again. Inpainting and edit models need nothing of their own.

To seed a fleet: prebuild on one machine, `store export all --to fleet.zip --key fleet.key`, and on every machine of the same
kind `store import fleet.zip --key fleet.key`.

examples:
  python -m lib_accel prebuild --family sd1 --family sdxl
  python -m lib_accel prebuild --family model.safetensors --dtype bfloat16"""


def add(commands: Commands) -> None:
    p = command(commands, "prebuild", "compile artifacts ahead of time into the store", run, _MORE)
    p.add_argument(
        "--family",
        action="append",
        type=family,
        required=True,
        metavar="NAME",
        help="sd1, sd2, sdxl, sdxl-refiner, or a checkpoint file; may be repeated",
    )
    p.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="compiling processes (default: by the machine)",
    )
    add_store_arguments(p)
    add_device_arguments(p)


def run(args: argparse.Namespace) -> int:
    device, dtype = device_and_dtype(args)
    store = make_store(args)
    built, lines = [], []
    for architecture in args.family:
        target = Target(units_of(architecture), dtype, device, probe(device))
        why = Aoti().why_not(target, store, Config(store=args.store))
        if why:
            raise BackendUnavailable(why)
        job = CompileJob(target, store, args.workers)
        job.start()
        follow(job, architecture.name)
        job.result()
        artifact = store.get(target.key)
        assert artifact is not None
        seconds = round(job.progress().elapsed_s, 1)
        built.append(
            {
                "architecture": architecture.name,
                "key": artifact.key,
                "bytes": artifact.bytes,
                "compiled": job.compiled,
                "seconds": seconds,
            }
        )
        made = (
            f"{job.compiled} of {len(target.units)} units compiled in {seconds} s"
            if job.compiled
            else "there already"
        )
        lines.append(
            f"{architecture.name}: {made}, {artifact.bytes / 1e6:.1f} MB, artifact {artifact.key[:12]}"
        )
    show(
        {"artifacts": built, "store": str(store.root)},
        args,
        "\n".join([*lines, f"store: {store.root}"]),
    )
    return 0
