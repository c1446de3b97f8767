"""`prebuild`: make artifacts ahead, for servers and images."""

from __future__ import annotations

import argparse

from ...compile.aoti.backend import Aoti
from ...compile.jobs import Job
from ...compile.machine import probe
from ...compile.target import Target
from ...compile.units import units_of
from ...config import Config
from ...errors import ArtifactRejected, BackendUnavailable
from ...store import ArtifactStore
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

_MORE = """Compiled code depends on the architecture, the dtype, the GPU (or CPU) model and the
torch version; never on the checkpoint, the size, the batch, the prompt's length or a LoRA. So one
run per architecture is all that is needed. Units that are in the store already, also from another
architecture or an interrupted run, are not compiled again. Inpainting and edit models need no units
of their own.

To seed a fleet: prebuild on one machine, `store export all --to fleet.zip --key fleet.key`, and on
every machine of the same kind `store import fleet.zip --key fleet.key`.

examples:
  python -m lib_accel prebuild --family sd1 --family sdxl
  python -m lib_accel prebuild --family model.safetensors --dtype bfloat16"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
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
    """Compile what is missing and print what the store has then."""
    device, dtype = device_and_dtype(args)
    store, backend = make_store(args), Aoti(args.workers)
    built, lines = [], []
    for architecture in args.family:
        units, name = units_of(architecture), architecture.name
        target = Target(units, dtype, device, probe(device), name)
        if why := backend.why_not(target, store, Config(store=args.store)):
            raise BackendUnavailable(why)
        compiled, seconds = _make(backend, target, store, architecture.name)
        size = backend.kept_bytes(target, store)
        assert size is not None
        built.append(
            {
                "architecture": architecture.name,
                "key": target.key,
                "bytes": size,
                "units": len(target.units),
                "compiled": compiled,
                "seconds": seconds,
            }
        )
        made = (
            f"{compiled} of {len(target.units)} units compiled in {seconds} s"
            if compiled
            else f"{len(target.units)} units, all stored already"
        )
        lines.append(f"{architecture.name}: {made}, {size / 1e6:.1f} MB")
    text = "\n".join([*lines, f"store: {store.root}"])
    show({"artifacts": built, "store": str(store.root)}, args, text)
    return 0


def _make(backend: Aoti, target: Target, store: ArtifactStore, label: str) -> tuple[int, float]:
    """Compile what is missing; return the number of units compiled and the seconds it took."""
    refused: set[str] = set()
    while True:
        try:
            job = backend.make(target, store)
            break
        except ArtifactRejected as e:
            if e.key is None or e.key in refused:
                raise
            store.discard(e.key, str(e))
            refused.add(e.key)
    if not isinstance(job, Job):
        return 0, 0.0
    follow(job, label)
    job.result()
    return job.compiled, round(job.progress().elapsed_s, 1)
