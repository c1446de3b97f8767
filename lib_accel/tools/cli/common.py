"""What several commands share: arguments, devices, progress and output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from ...compile.jobs import Job
from ...compile.session import BACKENDS
from ...config import AUTO, MIB, Config, default_store, default_store_key
from ...errors import AccelError, printable, printable_lines
from ...model import presets
from ...model.architecture import Architecture
from ...store.store import ArtifactStore
from ..checkpoint import open_checkpoint
from ..checkpoint_formats import FORMATS

Commands = Any  # argparse's sub-parser collection has no public type

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions, and adds defaults that tell a user something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        no_value = action.default in (None, False, argparse.SUPPRESS) or action.default == []
        return text if no_value or "default" in text else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Prints what it refuses so that a terminal only shows it."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and end with status 2."""
        super().error(printable(message))


def command(
    commands: Commands,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
    more: str = "",
) -> argparse.ArgumentParser:
    """Add a command; return its parser.

    `summary` is its line in the list of commands, `more` the text of its own --help below that.
    """
    description = f"{summary[0].upper()}{summary[1:]}.\n\n{more}".strip()
    parser = commands.add_parser(name, help=summary, description=description, formatter_class=Help)
    text = "print one JSON object on standard output"
    parser.add_argument("--json", action="store_true", help=text)
    parser.set_defaults(run=run)
    return parser


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --backend, and the arguments of the store and of the device."""
    text = (
        "what computes: aoti compiles once and keeps the result, jit is torch.compile, eager "
        "compiles nothing, auto takes the best that works here"
    )
    names = (AUTO, *(b.name for b in BACKENDS))
    parser.add_argument("--backend", choices=names, default=AUTO, help=text)
    add_store_arguments(parser)
    add_device_arguments(parser)


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --store, --store-key and --store-mib."""
    text = "folder of the artifacts"
    parser.add_argument("--store", type=Path, metavar="DIR", default=default_store(), help=text)
    text = (
        "file with the key that signs and checks the artifacts, for a store that several users or "
        "machines share; by default ACCEL_STORE_KEY_FILE, else your own key"
    )
    parser.add_argument(
        "--store-key", type=Path, metavar="FILE", default=default_store_key(), help=text
    )
    text = "largest size of the store in MiB; the artifact that was used longest ago goes first"
    parser.add_argument("--store-mib", type=positive, metavar="N", default=2048, help=text)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype."""
    parser.add_argument("--device", default=default_device(), help="cuda, cuda:1, cpu, ...")
    text = "precision of the weights (default: float16 on a GPU, float32 on a CPU)"
    parser.add_argument("--dtype", choices=DTYPES, help=text)


def add_results_argument(parser: argparse.ArgumentParser) -> None:
    """Add --out."""
    text = "folder for the JSON and the tables"
    default = Path("bench-results")
    parser.add_argument("--out", type=Path, metavar="DIR", default=default, help=text)


def number_up_to(most: int) -> Callable[[str], int]:
    """Return what parses a whole number from 1 to `most`."""

    def parse(text: str) -> int:
        number = int(text) if text.isdecimal() and len(text) < 20 else 0
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to {most}")
        return number

    return parse


positive = number_up_to(10**6)


def image_size(text: str) -> int:
    """Parse a width or height in pixels."""
    size = int(text) if text.isdecimal() and len(text) < 20 else 0
    if not 64 <= size <= 16384 or size % 8:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected pixels, a multiple of 8 from 64 to 16384"
        )
    return size


def default_device() -> str:
    """Return "cuda" where there is a GPU that torch can use, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_and_dtype(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Return what --device and --dtype mean here. Raises AccelError where it is missing."""
    try:
        device = torch.device(args.device)
    except RuntimeError as e:
        raise AccelError(
            f"--device {args.device}: torch knows no such kind of device; "
            "expected cpu, cuda, cuda:1 or mps"
        ) from e
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AccelError(
            f"--device {args.device}: this torch ({torch.__version__}) sees no CUDA device; "
            "try `python -m lib_accel doctor`"
        )
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as e:
        raise AccelError(
            f"--device {args.device}: torch cannot compute there ({str(e).splitlines()[0]}); "
            "expected cpu, or a GPU of this machine such as cuda or cuda:1"
        ) from e
    device = torch.device(device.type, device.index or 0) if device.type == "cuda" else device
    default = torch.float16 if device.type == "cuda" else torch.float32
    return device, DTYPES[args.dtype] if args.dtype else default


def make_config(args: argparse.Namespace, backend: str) -> Config:
    """Return the configuration that the arguments of the store describe."""
    return Config(
        backend=backend,
        store=args.store,
        store_bytes=args.store_mib * MIB,
        store_key=args.store_key,
    )


def make_store(args: argparse.Namespace) -> ArtifactStore:
    """Open the store that the arguments describe."""
    return ArtifactStore(args.store, args.store_mib * MIB, key_file=args.store_key)


def family(text: str) -> Architecture:
    """Parse a family, with another width (`sd1:64`) or input channels (`sd1+9`), or a file."""
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
        f"{text!r} is neither a family ({', '.join(presets.PRESETS)}) nor a checkpoint file"
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


def say(text: str = "") -> None:
    """Print words for a person on standard error; standard output is for the result."""
    print(printable_lines(text), file=sys.stderr, flush=True)


def show(result: dict[str, Any], args: argparse.Namespace, text: str) -> None:
    """Print the result on standard output: as JSON with --json, else as text."""
    print(json.dumps(result, indent=1) if args.json else printable_lines(text), flush=True)


def follow(job: Job, label: str) -> None:
    """Show the progress of a job until it ends. An interrupt cancels the job first.

    Progress that goes into a file is written every 10 seconds only.
    """
    interval = 0.2 if sys.stderr.isatty() else 10.0
    bar_format = "{desc}: {percentage:3.0f}%|{bar:30}| {elapsed} {postfix}"
    with tqdm(total=100, desc=label, bar_format=bar_format, file=sys.stderr) as bar:
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
