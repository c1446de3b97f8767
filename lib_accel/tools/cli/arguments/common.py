"""What the arguments of several commands share: parsers, help, devices, the store."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ....config import AUTO, key_file, places
from ....errors import printable
from ...setup_environment import is_own_environment
from ...terminal import write

Commands = Any  # argparse's sub-parser collection has no public type

BACKENDS = (AUTO, "tensorrt", "aoti", "jit", "kernels", "eager")
DTYPES = ("float32", "float16", "bfloat16")

_FIRST_COLUMN = re.compile(r" +\S+(?: \S+)*  +")
_SECOND_COLUMN = re.compile(r" {8,}")
"""Of a row whose first column is in a line of its own."""


def program() -> str:
    """Return how this program is called, for usage and examples."""
    words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if Path(words[-1]).name not in ("lib_accel", "__main__.py"):
        return "python3 -m lib_accel"  # another program has imported it
    if sys.prefix == sys.base_prefix or is_own_environment():
        words[0] = "py" if sys.platform == "win32" else "python3"  # as the README writes it
    return shlex.join(words)


class Help(argparse.HelpFormatter):
    """Fits text into the terminal, breaks no word, and adds defaults that tell a user something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        no_value = action.default in (None, False, argparse.SUPPRESS) or action.default == []
        return text if no_value or "default" in text else f"{text} (default: %(default)s)"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrap(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Fill the text. Lines that are indented stay lines: rows of a table, or commands."""
        lines: list[str] = []
        flowing = ""
        for line in [*text.splitlines(), ""]:
            if line and not line.startswith(" "):
                flowing += f"{line} "
                continue
            lines += _wrap(flowing, width)
            flowing = ""
            column = _FIRST_COLUMN.match(line) or _SECOND_COLUMN.match(line)
            if column:
                lines += _wrap(line, width, column.end())
            else:
                lines += " \\\n".join(_wrap(line, width - 2, 6)).splitlines() or [""]
        return "\n".join(lines[:-1])


def _wrap(text: str, width: int, hanging: int = 0) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


class Parser(argparse.ArgumentParser):
    """Prints what it refuses so that a terminal only shows it."""

    def error(self, message: str) -> NoReturn:
        """Print the message and where help is, and end with status 2."""
        self.exit(2, f"error: {printable(message)}\nHelp: {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        write(message.rstrip("\n"), file or sys.stderr)


def command(
    commands: Commands, name: str, summary: str, more: str = "", json: bool = True
) -> argparse.ArgumentParser:
    """Add a command; return its parser.

    `summary` is its line in the list of commands, `more` the text of its own --help below that, in
    which PROGRAM stands for how the program is called. Without `json` it has no --json.
    """
    description = f"{summary[0].upper()}{summary[1:]}.\n\n{more}".strip()
    parser = commands.add_parser(
        name,
        help=summary,
        description=description.replace("PROGRAM", program()),
        formatter_class=Help,
    )
    if json:
        text = "print one JSON object on standard output"
        parser.add_argument("--json", action="store_true", help=text)
    parser.set_defaults(parser=parser)
    return parser


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --backend, and the arguments of the store and of the device."""
    text = (
        "what computes: tensorrt is NVIDIA's TensorRT for RTX where it is installed, aoti compiles "
        "once and keeps the result, jit is torch.compile, kernels is fused kernels that need no "
        "compiler to be installed, eager compiles nothing, auto takes the best that works here "
        "(default: auto)"
    )
    parser.add_argument("--backend", choices=BACKENDS, metavar="NAME", default=AUTO, help=text)
    add_store_arguments(parser)
    add_device_arguments(parser)


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --store and its size, and the keys that sign and check what is in it."""
    folder, url = places()
    text = (
        "folder of the artifacts (default: %(default)s), or the URL of a store that machines share "
        "(s3://, https://, file://), with that folder as its cache"
    )
    parser.add_argument("--store", action=_Store, metavar="DIR|URL", default=folder, help=text)
    parser.set_defaults(remote=url)
    texts = {
        "store_key": "file with the key that signs and checks the artifacts, for a store that "
        "several users or machines share; by default ACCEL_STORE_KEY_FILE, else your own key",
        "trusted_keys": "file of public keys whose owners may sign code for this machine (default: "
        "ACCEL_TRUSTED_KEYS_FILE)",
        "signing_key": "file with a private key that signs what is compiled or exported, for those "
        "who trust it (default: ACCEL_SIGNING_KEY_FILE)",
    }
    for name, text in texts.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=path, metavar="FILE", default=key_file(name), help=text)
    text = "largest size of the store in MiB; the artifact that was used longest ago goes first"
    parser.add_argument("--store-mib", type=positive, metavar="N", default=2048, help=text)


class _Store(argparse.Action):
    """Sets `store` to the folder and `remote` to the URL that go with what was given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Set both."""
        try:
            namespace.store, namespace.remote = places(home(str(values)))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype."""
    text = "cpu, cuda, cuda:1, ... (default: cuda where torch sees a GPU, else cpu)"
    parser.add_argument("--device", metavar="NAME", help=text)
    text = (
        "precision of the weights: float32, float16 or bfloat16 (default: float16 on a GPU, "
        "float32 on a CPU)"
    )
    parser.add_argument("--dtype", choices=DTYPES, metavar="NAME", help=text)


def add_results_argument(parser: argparse.ArgumentParser) -> None:
    """Add --out."""
    text = "folder for the JSON and the tables"
    default = Path("bench-results")
    parser.add_argument("--out", type=path, metavar="DIR", default=default, help=text)


def home(text: str) -> str:
    """Return a path, or what begins with one, with `~` as the user's home.

    A shell leaves it to us in `--to=~/x.zip`; else a folder called `~` would be made.
    """
    whole = os.path.expanduser(text)  # noqa: PTH111  (of a word such as FILE:STRENGTH, too)
    if whole.startswith("~"):
        raise argparse.ArgumentTypeError(
            f"{text!r}: there is no such home; expected another path, or ./{text} for that name"
        )
    return whole


def path(text: str) -> Path:
    """Parse a path."""
    return Path(home(text))


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
