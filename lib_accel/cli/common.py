"""What several commands share: arguments, devices, progress, and where words and JSON go."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import presets
from ..architecture import Architecture
from ..checkpoint import open_checkpoint
from ..config import BACKENDS, MIB, Config
from ..environment import default_store
from ..errors import AccelError
from ..jobs import Job
from ..store import ArtifactStore

Commands = Any  # argparse's sub-parser collection has no public type

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def command(commands: Commands, name: str, help_text: str, run: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_text, description=help_text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.set_defaults(run=run)
    return parser


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="how fast code is made")
    add_store_arguments(parser)
    add_device_arguments(parser)


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, default=default_store(), help="where artifacts are kept (or the variable ACCEL_STORE)")
    parser.add_argument("--store-mib", type=int, default=2048, help="most space the store may take; least recently used goes first")


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default=default_device(), help="cuda, cuda:1, cpu, ...")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=None, help="precision of the weights (default: float16 on a GPU, float32 on a CPU)"
    )


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_and_dtype(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    device = torch.device(args.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise AccelError(
                f"--device {args.device}: this torch ({torch.__version__}) sees no CUDA device; try `python -m lib_accel doctor`"
            )
        device = torch.device("cuda", device.index or 0)
    return device, DTYPES[args.dtype] if args.dtype else (torch.float16 if device.type == "cuda" else torch.float32)


def make_config(args: argparse.Namespace, **more: Any) -> Config:
    return Config(backend=args.backend, store=args.store, store_bytes=args.store_mib * MIB, **more)


def make_store(args: argparse.Namespace) -> ArtifactStore:
    return ArtifactStore(args.store, args.store_mib * MIB, chosen=True)


def family(text: str) -> Architecture:
    """`sd1`, `sdxl`, ..., `sd1:64` (another width), `sd1+9` (input channels), or a checkpoint's path."""
    name, _, channels = text.partition("+")
    name, _, width = name.partition(":")
    if name in presets.PRESETS:
        options = {}
        if width:
            options["model_channels"] = int(width)
        if channels:
            options["in_channels"] = int(channels)
        return presets.PRESETS[name](**options)
    if Path(text).exists():
        return open_checkpoint(Path(text)).architecture()
    raise argparse.ArgumentTypeError(f"{text!r} is neither a family ({', '.join(presets.PRESETS)}) nor a checkpoint file")


def say(text: str = "") -> None:
    """Words for a person go to standard error; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def show(result: dict[str, Any], args: argparse.Namespace, text: str) -> None:
    """The result: as JSON where a machine reads, as text where a person does."""
    print(json.dumps(result, indent=1) if args.json else text, flush=True)


def follow(job: Job, label: str, quiet: bool = False) -> None:
    """Draw the job's progress until it ends; an interrupt cancels it first."""
    with tqdm(
        total=100, desc=label, bar_format="{desc}: {percentage:3.0f}%|{bar:30}| {elapsed} {postfix}", disable=quiet, file=sys.stderr
    ) as bar:
        try:
            while not job.done:
                p = job.progress()
                bar.n = round(100 * (p.fraction or 0))
                left = f", about {p.remaining_s:.0f} s left" if p.remaining_s else ""
                bar.set_postfix_str(p.stage + left)
                time.sleep(0.2)
        except KeyboardInterrupt:
            job.cancel()
            job.wait(10)
            raise
        if job.progress().stage == "done":
            bar.n = 100
            bar.set_postfix_str("done")
