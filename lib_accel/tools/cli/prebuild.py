"""`prebuild`: make artifacts ahead, for servers and images."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable

from tqdm import tqdm

from ...compile.backends.aoti.backend import Aoti
from ...compile.backends.fetching import FetchJob, missing
from ...compile.backends.kernels.backend import FusedKernels
from ...compile.backends.tensorrt import libraries
from ...compile.backends.tensorrt.child import build_into
from ...compile.backends.tensorrt.engines import Wanted, engines_of
from ...compile.jobs import Job
from ...compile.machine import probe
from ...compile.target import Target
from ...config import FETCH_S, MIB, Config
from ...errors import ArtifactRejected, BackendUnavailable
from ...store import ArtifactStore
from ...store.exchange.shared import SharedStore
from ...store.summary import bytes_of
from ..terminal import say, show
from . import webui_python
from .common import device_and_dtype, family, follow, make_store, publish, shared_store


def run(args: argparse.Namespace) -> int:
    """Compile what is missing and print what the store has then."""
    if args.backend == "tensorrt":  # engines depend on no Python and no torch
        return _engines(args)
    if why := webui_python.other():
        say(f"note: {why}")
    device, dtype = device_and_dtype(args)
    store = _store(args)
    backend = FusedKernels() if args.backend == FusedKernels.name else Aoti(args.workers)
    built, lines = [], []
    for architecture in map(family, args.family):
        target = Target.of_unet(architecture, dtype, device, probe(device))
        if why := backend.why_not(target, store, Config(store=args.store)):
            raise BackendUnavailable(why)
        _fetch(target, store, backend.keys(target), architecture.name)
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
        lines.append(f"{architecture.name}: {made}, {size / MIB:.1f} MiB")
        lines += _published(store, backend.keys(target))
    text = "\n".join([*lines, f"store: {store.root}"])
    show({"artifacts": built, "store": str(store.root)}, args, text)
    return 0


def _store(args: argparse.Namespace) -> ArtifactStore:
    return shared_store(args, args.remote) if args.remote else make_store(args)


def _fetch(target: Target, store: ArtifactStore, keys: list[str], label: str) -> None:
    """Take what the shared store has, where there is one."""
    if isinstance(store, SharedStore) and (wanted := missing(store, keys)):
        follow(FetchJob(target, store, wanted, FETCH_S).start(), label)


def _published(store: ArtifactStore, keys: Iterable[str]) -> list[str]:
    """Write to the shared store what it lacks, where there is one; return what to say of that."""
    if not isinstance(store, SharedStore):
        return []
    store.settle(math.inf)  # what was put is being published already
    publish(store, keys)
    return [f"all of them are in {store.remote.shown}"]


def _make(
    backend: Aoti | FusedKernels, target: Target, store: ArtifactStore, label: str
) -> tuple[int, float]:
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


def _engines(args: argparse.Namespace) -> int:
    """Build the engines of TensorRT that are missing, and print what the store has then."""
    version = libraries.version()
    if version is None:
        raise BackendUnavailable(libraries.why_not())
    store, dtype = _store(args), args.dtype or "float16"
    built, lines = [], []
    for architecture in map(family, args.family):
        for cards in args.cards:
            wanted = engines_of(architecture, dtype, cards, version)
            seconds = _build_engines(store, wanted, f"{architecture.name}, {cards}")
            size = bytes_of(map(store.entry, wanted))
            assert size is not None
            built.append(
                {
                    "architecture": architecture.name,
                    "cards": cards,
                    "bytes": size,
                    "engines": len(wanted),
                    "built": len(seconds),
                    "seconds": round(sum(seconds), 1),
                }
            )
            made = f"{len(seconds)} of {len(wanted)} engines built in {sum(seconds):.0f} s"
            lines.append(f"{architecture.name}, {cards}, {dtype}: {made}, {size / MIB:.1f} MiB")
            lines += _published(store, wanted)
    text = "\n".join([*lines, f"store: {store.root}"])
    show({"artifacts": built, "store": str(store.root)}, args, text)
    return 0


def _build_engines(store: ArtifactStore, wanted: dict[str, Wanted], label: str) -> list[float]:
    """Build the engines that are missing; return the seconds of each."""
    missing = [each for key, each in wanted.items() if not store.contains(key)]
    seconds = []
    with tqdm(missing, desc=label, disable=None) as bar:
        for each in bar:
            say(f"{label}: {each.name}") if bar.disable else bar.set_postfix_str(each.name)
            began = time.monotonic()
            build_into(store, each, keep=wanted)
            seconds.append(time.monotonic() - began)
    return seconds
