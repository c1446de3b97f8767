"""The arguments of every command. Nothing heavy is imported here: help must come at once."""

from __future__ import annotations

from .... import __version__
from . import bench, cost, demo, doctor, gpu, prebuild, store
from .common import Help, Parser, program

_DESCRIPTION = """Compiled code for a UNet: it serves every checkpoint, size, prompt and LoRA.

The first command on a machine makes the environment it needs in .venv, once, unless the Python that
you call has every package already. `doctor` and --help install nothing."""
_EPILOG = """examples:
  PROGRAM doctor
  PROGRAM demo --checkpoint model.safetensors --lora style.safetensors:0.8
  PROGRAM prebuild --family sd1 --family sdxl

COMMAND --help explains a command. Every command takes --json and then prints one JSON object.
Standard output holds the result alone; words and progress go to standard error.

Exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted."""


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(
        prog=program(),
        description=_DESCRIPTION,
        epilog=_EPILOG.replace("PROGRAM", program()),
        formatter_class=Help,
    )
    top.add_argument("--version", action="version", version=__version__)
    top.set_defaults(parser=top)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for module in (demo, bench, gpu, cost, prebuild, store, doctor):
        module.add(commands)
    return top
