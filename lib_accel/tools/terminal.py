"""What a person at a terminal reads, answers and interrupts. Nothing but the standard library."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from ..errors import AccelError, printable_lines

INTERRUPTED = 130
"""Exit status of a program that Ctrl-C has ended, as shells report it."""

NOBODY_READS = 141
"""Exit status of a program whose output nobody reads any more, as shells report it (SIGPIPE)."""

UNWIND_S = 15.0
"""How long an interrupted command may clean up."""


def say(text: str = "") -> None:
    """Print words for a person on standard error; standard output is for the result."""
    write(printable_lines(text), sys.stderr)


def show(result: dict[str, Any], args: argparse.Namespace, text: str) -> None:
    """Print the result on standard output: as JSON with --json, else as text."""
    write(json.dumps(result, indent=1) if args.json else printable_lines(text), sys.stdout)


def write(text: str, stream: IO[str] | None) -> None:
    """Print a line. Where nobody reads it any more (`| head`), end the program in silence."""
    try:
        print(text, file=stream, flush=True)
    except OSError as e:
        if e.errno not in (errno.EPIPE, errno.EINVAL) or stream is None:  # EINVAL: on Windows
            raise
        # Python would try to write the rest at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(NOBODY_READS) from None


def agreed(question: str) -> bool:
    """Ask on standard error; return whether the answer was yes.

    Raises AccelError where nobody can answer.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise AccelError(f"{question} Nobody can answer here: give --yes to do it without asking")
    print(printable_lines(f"{question} [y/N] "), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def end_on_interrupt() -> None:
    """Let Ctrl-C end this process at once.

    For as long as there is nothing to clean up. A KeyboardInterrupt would print a traceback, and
    gets lost in some imports, those of torch among them.
    """
    signal.signal(signal.SIGINT, _end)


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the `with`, so that what runs there cleans up.

    It is raised at the end too, in case that other code lost it. At the second Ctrl-C, or after
    UNWIND_S, the process and its children are ended at once.
    """
    interrupted = threading.Event()

    def interrupt(*_: object) -> NoReturn:
        signal.signal(signal.SIGINT, _end)
        timer = threading.Timer(UNWIND_S, _end)
        timer.daemon = True
        timer.start()
        interrupted.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupted.is_set() and not isinstance(sys.exc_info()[1], SystemExit):
            raise KeyboardInterrupt


def end_children() -> None:
    """End every process that this one has started, and what those have started."""
    psutil: Any = sys.modules.get("psutil")  # what starts processes has imported it
    if not hasattr(psutil, "Process"):
        return
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            child.kill()


def _end(*_: object) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, b"interrupted\n")
    end_children()
    os._exit(INTERRUPTED)
