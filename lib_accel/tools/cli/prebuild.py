"""`prebuild`: make artifacts ahead, for servers and images."""

from __future__ import annotations

import argparse

from ...compile.backends.aoti.backend import Aoti
from ...compile.jobs import Job
from ...compile.machine import probe
from ...compile.target import Target
from ...compile.units import units_of
from ...config import Config
from ...errors import ArtifactRejected, BackendUnavailable
from ...store import ArtifactStore
from ..terminal import say, show
from . import webui_python
from .common import device_and_dtype, family, follow, make_store


def run(args: argparse.Namespace) -> int:
    """Compile what is missing and print what the store has then."""
    if why := webui_python.other():
        say(f"note: {why}")
    device, dtype = device_and_dtype(args)
    store, backend = make_store(args), Aoti(args.workers)
    built, lines = [], []
    for architecture in map(family, args.family):
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
