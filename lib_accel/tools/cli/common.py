"""What several commands share: arguments, devices, progress, and where words and JSON go."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...compile.jobs import Job
from ...compile.session import BACKENDS
from ...config import AUTO, MIB, Config, default_store
from ...errors import AccelError
from ...model import presets
from ...model.architecture import Architecture
from ...store.store import ArtifactStore
from ..checkpoint import open_checkpoint

Commands = Any  # argparse's sub-parser collection has no public type

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Help(argparse.RawDescriptionHelpFormatter):
    """Text as it is written, and each default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        told = (
            action.default in (None, False, argparse.SUPPRESS)
            or action.default == []
            or "default" in text
        )
        return text if told else f"{text} (default: %(default)s)"


def command(
    commands: Commands, name: str, help_text: str, run: Any, more: str = ""
) -> argparse.ArgumentParser:
    """`help_text`: one line for the list of commands; `more`: what its own --help teaches besides."""
    first = help_text[0].upper() + help_text[1:] + "."
    parser = commands.add_parser(
        name, help=help_text, description=f"{first}\n\n{more}".strip(), formatter_class=Help
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    parser.set_defaults(run=run)
    return parser


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=(AUTO, *(b.name for b in BACKENDS)),
        default="auto",
        help="what makes the fast code: aoti compiles once and keeps it, jit is torch.compile, eager compiles nothing; "
        "auto takes the best that works here",
    )
    add_store_arguments(parser)
    add_device_arguments(parser)


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        default=default_store(),
        help="where artifacts are kept",
    )
    parser.add_argument(
        "--store-mib",
        type=positive,
        metavar="N",
        default=2048,
        help="most space in MiB the store may take; least recently used goes first",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default=default_device(), help="cuda, cuda:1, cpu, ...")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the weights (default: float16 on a GPU, float32 on a CPU)",
    )


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)


def image_size(text: str) -> int:
    if not text.isdecimal() or int(text) < 64 or int(text) % 8:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected pixels, a multiple of 8 and at least 64"
        )
    return int(text)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_and_dtype(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    try:
        device = torch.device(args.device)
    except RuntimeError as e:
        raise AccelError(
            f"--device {args.device}: no kind of device torch knows; expected cpu, cuda, cuda:1 or mps"
        ) from e
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise AccelError(
                f"--device {args.device}: this torch ({torch.__version__}) sees no CUDA device; try `python -m lib_accel doctor`"
            )
        device = torch.device("cuda", device.index or 0)
    return device, DTYPES[args.dtype] if args.dtype else (
        torch.float16 if device.type == "cuda" else torch.float32
    )


def make_config(args: argparse.Namespace, backend: str) -> Config:
    return Config(backend=backend, store=args.store, store_bytes=args.store_mib * MIB)


def make_store(args: argparse.Namespace) -> ArtifactStore:
    return ArtifactStore(args.store, args.store_mib * MIB)


def family(text: str) -> Architecture:
    """`sd1`, `sdxl`, ..., `sd1:64` (another width), `sd1+9` (input channels), or a checkpoint's path."""
    name, _, channels = text.partition("+")
    name, _, width = name.partition(":")
    if name in presets.PRESETS:
        options = {}
        if width:
            options["model_channels"] = positive(width)
        if channels:
            options["in_channels"] = positive(channels)
        try:
            return presets.PRESETS[name](**options)
        except AccelError as e:
            raise argparse.ArgumentTypeError(str(e)) from e
    if Path(text).exists():
        try:
            return open_checkpoint(Path(text)).architecture()
        except AccelError as e:
            raise argparse.ArgumentTypeError(str(e)) from e
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither a family ({', '.join(presets.PRESETS)}) nor a checkpoint file"
    )


def say(text: str = "") -> None:
    """Words for a person go to standard error; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def show(result: dict[str, Any], args: argparse.Namespace, text: str) -> None:
    """The result: as JSON where a machine reads, as text where a person does."""
    print(json.dumps(result, indent=1) if args.json else text, flush=True)


def follow(job: Job, label: str) -> None:
    """Draw the job's progress until it ends, now and then only where it goes into a file; an interrupt cancels it first."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(
        total=100,
        desc=label,
        bar_format="{desc}: {percentage:3.0f}%|{bar:30}| {elapsed} {postfix}",
        file=sys.stderr,
    ) as bar:
        try:
            while not job.done:
                p = job.progress()
                bar.n = round(100 * (p.fraction or 0))
                left = f", about {p.remaining_s:.0f} s left" if p.remaining_s else ""
                bar.set_postfix_str(p.stage + left)
                job.wait(interval)
        except KeyboardInterrupt:
            job.cancel()
            job.wait(10)
            raise
        if job.progress().stage == "done":
            bar.n = 100
            bar.set_postfix_str("done")
