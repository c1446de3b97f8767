"""What several commands share once they run: devices, stores, families, the progress of a job."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ...compile.jobs import Job
from ...config import AUTO, MIB, Config
from ...errors import AccelError
from ...model import presets
from ...model.architecture import Architecture
from ...store import ArtifactStore
from ...store.exchange.shared import SharedStore, store_of
from ..checkpoints.formats import FORMATS
from ..checkpoints.reading import open_checkpoint
from ..terminal import say
from .arguments.common import positive

LINES_APART_S = 10.0
"""How often progress is written where it goes into a file."""


def default_device() -> str:
    """Return "cuda" where there is a GPU that torch can use, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def no_gpu() -> str:
    """Return why torch can use no GPU, and what to do."""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"this torch ({torch.__version__}) was made for CPUs alone. For a GPU, install one "
            "that was made for it, see https://pytorch.org/get-started"
        )
    return (
        f"this torch ({torch.__version__}) sees no GPU. For one by NVIDIA, `nvidia-smi` shows "
        "whether its driver works"
    )


def device_and_dtype(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Return what --device and --dtype mean here. Raises AccelError where it is missing."""
    try:
        device = torch.device(args.device or default_device())
    except RuntimeError as e:
        raise AccelError(
            f"--device {args.device}: torch knows no such kind of device; "
            "expected cpu, cuda, cuda:1 or mps"
        ) from e
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AccelError(f"--device {args.device}: {no_gpu()}")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as e:
        raise AccelError(
            f"--device {args.device}: torch cannot compute there ({str(e).splitlines()[0]}); "
            "expected cpu, or a GPU of this machine such as cuda or cuda:1"
        ) from e
    device = torch.device(device.type, device.index or 0) if device.type == "cuda" else device
    default = torch.float16 if device.type == "cuda" else torch.float32
    return device, getattr(torch, args.dtype) if args.dtype else default


def make_config(args: argparse.Namespace, backend: str) -> Config:
    """Return the configuration that the arguments of the store describe."""
    return Config(
        backend=backend,
        store=args.store,
        remote=args.remote,
        store_bytes=args.store_mib * MIB,
        store_key=args.store_key,
        trusted_keys=args.trusted_keys,
        signing_key=args.signing_key,
    )


def make_store(args: argparse.Namespace) -> ArtifactStore:
    """Open the store that the arguments describe."""
    return store_of(make_config(args, AUTO))


def shared_store(args: argparse.Namespace, url: str) -> SharedStore:
    """Return the store at `url`, with the folder that the arguments name as its cache.

    Raises AccelError where nothing can be written there for others.
    """
    store = store_of(replace(make_config(args, AUTO), remote=url))
    assert isinstance(store, SharedStore)
    if not store.publishes:
        raise AccelError(
            f"{store.remote.shown}: nothing can be written by HTTP; expected s3:// or file://"
            if not store.remote.writable
            else f"{store.remote.shown}: others take only code that is signed for them; give "
            "--signing-key FILE (`store key FILE --pair` makes one), or --store-key FILE with a "
            "key that all machines have"
        )
    return store


def publish(store: SharedStore, keys: Iterable[str]) -> int:
    """Write to the remote store what it lacks; return how much that was. Raises AccelError."""
    return sum(store.publish(key) for key in tqdm([*keys], desc="publishing", disable=None))


def family(text: str, *others: str) -> Architecture:
    """Parse a family, with another width (`sd1:64`) or input channels (`sd1+9`), or a file.

    `others` are words that the caller knows besides, for the message of an error.
    """
    name, _, channels = text.partition("+")
    name, _, width = name.partition(":")
    try:
        if name in presets.PRESETS:
            options = {"model_channels": positive(width)} if width else {}
            options |= {"in_channels": positive(channels)} if channels else {}
            return presets.PRESETS[name](**options)
        if Path(text).suffix.lower() in FORMATS or Path(text).exists():
            return open_checkpoint(Path(text)).architecture()
    except (AccelError, OSError) as e:  # OSError: the name is too long, or its folder is closed
        raise argparse.ArgumentTypeError(str(e)) from e
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither a family ({', '.join((*presets.PRESETS, *others))}) nor a "
        "checkpoint file"
    )


def located(path: Path, follow: bool = True) -> Path:
    """Return the absolute path, without `~` and, with `follow`, without links.

    Raises AccelError where there is no such user, or links lead in a circle.
    """
    try:
        path = path.expanduser()
        return path.resolve() if follow else path.absolute()
    except RuntimeError as e:
        raise AccelError(f"{path}: {e}; expected a path that leads somewhere") from e


def write_files(folder: Path, words: Sequence[object], texts: Mapping[str, str]) -> None:
    """Write `texts`, by the suffixes of their files, under one name made of `words`."""
    stem = re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, words)).lower())
    for suffix, text in texts.items():
        (folder / f"{stem}.{suffix}").write_text(text + "\n", encoding="utf-8")
    first, *others = texts
    say(f"written to {folder / stem}.{first} and {', '.join(f'.{each}' for each in others)}")


def follow(job: Job, label: str) -> None:
    """Show the progress of a job until it ends: a bar on a terminal, else a line now and then.

    Whatever ends the waiting before, as an interrupt does, cancels the job.
    """
    bar_format = "{desc}: {percentage:3.0f}%|{bar:30}| {elapsed} {postfix}"
    try:
        with tqdm(total=100, desc=label, bar_format=bar_format, disable=None) as bar:
            while not job.wait(LINES_APART_S if bar.disable else 0.2):
                p = job.progress()
                left = f", about {p.remaining_s:.0f} s left" if p.remaining_s else ""
                percent = round(100 * (p.fraction or 0))
                if bar.disable:
                    say(f"{label}: {percent} %, {p.stage}{left}")
                    continue
                bar.n = percent
                bar.set_postfix_str(p.stage + left)
            if job.progress().stage == "done":
                bar.n = 100
                bar.set_postfix_str("done")
    except BaseException:
        job.cancel()
        job.wait(10)
        raise
