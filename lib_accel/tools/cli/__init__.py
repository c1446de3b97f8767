"""The command line: `python3 -m lib_accel COMMAND`.

A command is a file with `run` here and one with `add` in arguments/. The first is imported when the
command runs, as it imports torch.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from typing import Any

from ...errors import AccelError
from .. import setup_environment
from ..terminal import INTERRUPTED, end_children, say, unwinding
from . import webui_python
from .arguments import parser

_NO_ROOM = re.compile("can't allocate|not enough memory|calculation overflowed")
"""How torch says on a CPU that there is no room; it has no type of error for that."""


def main(argv: list[str] | None = None, set_up: bool = False) -> int:
    """Run the command line with these arguments, by default the program's; return exit status.

    With `set_up`, packages that are missing are installed first, and the program continues where
    they are.
    """
    args = parser().parse_args(argv)
    if not args.command or (args.command == "store" and not args.action):
        args.parser.print_help()
        return 0
    try:
        if set_up and args.command != "doctor":  # that works with whatever Python runs it
            with unwinding():
                _set_up(args.command)
        command = importlib.import_module(f".{args.command}", __name__)
        with unwinding():
            return int(command.run(args))
    except argparse.ArgumentTypeError as e:
        return args.parser.error(str(e))
    except (AccelError, OSError, ValueError, MemoryError, RuntimeError) as e:
        say(f"error: {_explained(e)}")
        return 1
    except KeyboardInterrupt:
        end_children()
        say("interrupted")
        return INTERRUPTED


def _set_up(command: str) -> None:
    """Make sure that there is every package, in this Python or in `.venv`."""
    if command == "prebuild" and setup_environment.missing():
        if why := webui_python.other():
            raise AccelError(why)
        level, what, advice = webui_python.finding()
        if level != "ok":  # code for another torch never serves
            say(f"note: {what}; {advice}")
    if command == "gpu" and "torch" not in (missing := setup_environment.missing()):
        if missing:  # another torch in .venv would be another thing to measure
            raise AccelError(
                f"{', '.join(missing)}: not installed in this Python ({sys.executable}), whose "
                f"torch `gpu` measures. Expected: pip install {' '.join(missing)}"
            )
        return
    setup_environment.ensure()


def _explained(e: Exception) -> Any:
    """Return what a user reads of an error. Raises what is none of theirs."""
    if isinstance(e, FileNotFoundError) and e.filename:
        return f"{e.filename} does not exist. Check the name"
    if isinstance(e, OSError):
        return f"{e.strerror or e}{f': {e.filename}' if e.filename else ''}"
    if isinstance(e, AccelError | ValueError):
        return e
    if type(e).__name__ in ("MemoryError", "OutOfMemoryError") or _NO_ROOM.search(str(e)):
        return f"out of memory ({str(e) or type(e).__name__}). Expected less to compute"
    raise e
