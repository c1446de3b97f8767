"""`prebuild`: make artifacts ahead, for servers and images."""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ...compile.backends.aoti.backend import Aoti
from ...compile.backends.aoti.job import CompileJob
from ...compile.backends.fetching import FetchJob, missing
from ...compile.backends.kernels import nvrtc
from ...compile.backends.kernels.backend import FusedKernels, recipes_of
from ...compile.backends.kernels.job import keep
from ...compile.backends.tensorrt import libraries
from ...compile.backends.tensorrt.child import build_into
from ...compile.backends.tensorrt.engines import Wanted, cards_of, engines_of
from ...compile.jobs import CompiledUnits, Job, Turns
from ...compile.machine import probe
from ...compile.target import Target
from ...config import FETCH_S, MIB, Config
from ...errors import ArtifactRejected, BackendUnavailable
from ...model.architecture import Architecture
from ...model.specs import Spec
from ...model.vae.network import DECODER, ENCODER, Half
from ...store import ArtifactStore
from ...store.exchange.shared import SharedStore
from ...store.summary import bytes_of
from ..laboratory import elsewhere
from ..laboratory.elsewhere import Place
from ..terminal import say, show
from . import webui_python
from .arguments.common import positive
from .arguments.prebuild import VAE, number_of, require_possible
from .common import device_and_dtype, family, follow, make_store, publish, shared_store


@dataclass(frozen=True)
class Order:
    """Code of one backend for one machine: `word` of --for, or this one. `backend` loads it."""

    word: str
    backend: Aoti | FusedKernels
    place: Place | None
    device: torch.device
    dtype: torch.dtype

    def target(self, network: Architecture | tuple[Spec, ...]) -> Target:
        """Return what is to be compiled for a UNet, or for the layers of a VAE."""
        machine = self.place.machine if self.place else probe(self.device)
        if isinstance(network, Architecture):
            return Target.of_unet(network, self.dtype, self.device, machine)
        return Target.of_layers(VAE.upper(), network, self.dtype, self.device, machine)


def run(args: argparse.Namespace) -> int:
    """Compile what is missing and print what the store has then."""
    require_possible(args)
    if args.backend == "tensorrt":  # engines depend on no Python and no torch
        return _engines(args)
    if not args.places and (why := webui_python.other()):
        say(f"note: {why}")
    orders = [_order(args, word) for word in args.places or [""]]
    store, built, lines = _store(args), [], []
    for order, network in itertools.product(orders, map(_network, args.family)):
        target = order.target(network)
        label = f"{target.name}, {order.word}" if order.word else target.name
        keys = _keys(order, target)
        _fetch(target, store, keys, label)
        compiled, seconds = _make(order, target, store, label, args.workers)
        size = bytes_of(map(store.entry, keys))
        assert size is not None
        built.append(
            {
                "architecture": target.name,
                "for": order.word or "this machine",
                "key": target.key,
                "bytes": size,
                "units": len(keys),
                "compiled": compiled,
                "seconds": seconds,
            }
        )
        made = (
            f"{compiled} of {len(keys)} units compiled in {seconds} s"
            if compiled
            else f"{len(keys)} units, all stored already"
        )
        unchecked = "" if _checks(order) else ", to be checked where it is first loaded"
        lines.append(f"{label}: {made}, {size / MIB:.1f} MiB{unchecked}")
        lines += _published(store, keys)
    text = "\n".join([*lines, f"store: {store.root}"])
    show({"artifacts": built, "store": str(store.root)}, args, text)
    return 0


def _network(text: str) -> Architecture | tuple[Spec, ...]:
    """Return the UNet of a family, or the layers of both halves of the VAE that they share."""
    name, _, width = text.partition(":")
    if name != VAE:
        return family(text, VAE)
    channels = {"channels": positive(width)} if width else {}
    halves = (Half.preset(kind, **channels) for kind in (DECODER, ENCODER))
    return tuple(spec for half in halves for _, spec in half.layers)


def _order(args: argparse.Namespace, word: str) -> Order:
    """Return what a word of --for means to a backend; "" is this machine."""
    backend = FusedKernels() if args.backend == FusedKernels.name else Aoti(args.workers)
    if not word:
        return Order(word, backend, None, *device_and_dtype(args))
    kind, number = number_of(word)
    if kind == "cpu":
        place = elsewhere.processor(word.partition(":")[2])
    elif args.backend == FusedKernels.name:
        place = elsewhere.any_system(number, args.torch, args.windows)
    else:
        place = elsewhere.card(number, args.torch)
    dtype = args.dtype or ("float32" if kind == "cpu" else "float16")
    return Order(word, backend, place, elsewhere.CPU, getattr(torch, dtype))


def _keys(order: Order, target: Target) -> list[str]:
    """Return the keys of the artifacts. `FusedKernels.keys` knows this machine's cards alone."""
    if isinstance(order.backend, FusedKernels):
        return [*recipes_of(target)]
    return [*target.keys.values()]


def _checks(order: Order) -> bool:
    return order.place is None or order.place.elsewhere.checks


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
    order: Order, target: Target, store: ArtifactStore, label: str, workers: int | None
) -> tuple[int, float]:
    """Compile what is missing; return the number of units compiled and the seconds it took."""
    if order.place is not None and isinstance(order.backend, FusedKernels):
        return _kernels(target, store, order.place.elsewhere.origin)
    if why := order.backend.why_not(target, store, Config(store=store.root)):
        raise BackendUnavailable(why)
    refused: set[str] = set()
    while True:
        try:
            if order.place is None:
                job = order.backend.make(target, store)
            else:
                alone, made = Turns(), order.place.elsewhere
                job = CompileJob(target, store, _loads_none, alone, workers, elsewhere=made).start()
            if not isinstance(job, Job):
                return 0, 0.0
            follow(job, label)
            job.result()
            return job.compiled, round(job.progress().elapsed_s, 1)
        except ArtifactRejected as e:
            if e.key is None or e.key in refused:
                raise
            store.discard(e.key, str(e))
            refused.add(e.key)


def _loads_none(*_: object) -> CompiledUnits:
    return {}


def _kernels(target: Target, store: ArtifactStore, origin: str) -> tuple[int, float]:
    """Compile the fused kernels for a card that is not there."""
    recipes, began = recipes_of(target), time.monotonic()
    missing = [key for key in recipes if not store.contains(key)]
    if missing:
        major, minor = map(int, target.machine.capability.split("."))
        arch = nvrtc.architecture_for(target.machine.device_name, (major, minor))
        code = nvrtc.compile_kernels(arch, target.dtype)
        for key in missing:
            keep(store, code, recipes, key, None, target.name, origin)
    return len(missing), round(time.monotonic() - began, 1)


def _engines(args: argparse.Namespace) -> int:
    """Build the engines of TensorRT that are missing, and print what the store has then."""
    kinds, version = _kinds_of_cards(args), libraries.version()
    if version is None:
        raise BackendUnavailable(libraries.why_not())
    store, dtype = _store(args), args.dtype or "float16"
    built, lines = [], []
    for architecture in map(family, args.family):
        for cards in kinds:
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


def _kinds_of_cards(args: argparse.Namespace) -> list[str]:
    """Return the kinds of cards that --for names, or that of this machine's."""
    if args.places:
        named = {word: elsewhere.capability(number_of(word)[1]) for word in args.places}
    elif torch.cuda.is_available():
        device = device_and_dtype(args)[0]
        named = {str(device): probe(device).capability}
    else:
        raise argparse.ArgumentTypeError("--backend tensorrt needs --for here: there is no card")
    kinds = {word: cards_of(capability) for word, capability in named.items()}
    for word, kind in kinds.items():
        if kind is None:
            raise argparse.ArgumentTypeError(
                f"{word}: TensorRT for RTX serves 7.5, 8.0, 8.6, 8.9, and 12.0 and later"
            )
    return [*dict.fromkeys(filter(None, kinds.values()))]


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
