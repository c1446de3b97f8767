"""The command line: `python -m lib_accel COMMAND`. A command is a file with `add` and `run`."""

from __future__ import annotations

import argparse
import re

import torch

from ... import __version__
from ...errors import AccelError

_DESCRIPTION = "Compiled code for a UNet that serves every checkpoint, size, prompt and LoRA of it."
_EPILOG = """examples:
  python -m lib_accel demo             pictures with and without acceleration, and a report
  python -m lib_accel demo --checkpoint model.safetensors --lora style.safetensors:0.8
  python -m lib_accel doctor           what works on this machine, and what to do about the rest
  python -m lib_accel prebuild --family sd1 --family sdxl      compile before anyone needs it
  python -m lib_accel store export all --to fleet.zip --key fleet.key
  python -m lib_accel bench --size 512 --batch 2               measure variants of the UNet call

COMMAND --help explains a command. Every command takes --json and then prints one JSON object.
Standard output holds the result alone; words and progress go to standard error.
Exit status: 0 done, 1 failed, 2 wrong arguments.
"""

_NO_ROOM = re.compile("can't allocate|not enough memory|calculation overflowed")
"""How torch says on a CPU that there is no room; it has no type of error for that."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line with these arguments, by default the program's; return exit status."""
    from . import bench, cost, demo, doctor, gpu, prebuild, store
    from .common import Parser, say

    parser = Parser(
        prog="python -m lib_accel",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (demo, bench, gpu, cost, prebuild, store, doctor):
        module.add(commands)
    try:
        args = parser.parse_args(argv)
        return int(args.run(args))
    except OSError as e:
        say(f"error: {e.strerror or e}{f': {e.filename}' if e.filename else ''}")
        return 1
    except (AccelError, ValueError) as e:
        say(f"error: {e}")
        return 1
    except (MemoryError, RuntimeError) as e:
        if not (
            isinstance(e, MemoryError | torch.cuda.OutOfMemoryError) or _NO_ROOM.search(str(e))
        ):
            raise
        say(f"error: out of memory ({str(e) or type(e).__name__}). Expected less to compute")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
