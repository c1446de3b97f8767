"""The arguments of `gpu`."""

from __future__ import annotations

from .common import (
    Commands,
    add_device_arguments,
    add_results_argument,
    add_store_arguments,
    command,
    path,
    positive,
)

_MORE = """What is most valuable comes first. Each part runs in a process of its own, so one that
fails costs itself alone. One JSON file is written as results come; the same command goes on where
it stopped, on the same card with the same torch and the same version of this code. A part is begun
only where it is expected to end within --minutes. Nothing is installed and no network is needed.
Rows of diffusers' UNet are our own plain UNet where diffusers is not installed. --dry-run runs all
parts with tiny UNets, on a CPU too.

examples:
  PROGRAM gpu
  PROGRAM gpu --minutes 30
  PROGRAM gpu --carried .gpu/carried.zip --allow-unsigned"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    p = command(commands, "gpu", "measure everything that only a GPU can show", _MORE)
    text = "end after this; the same command goes on"
    p.add_argument("--minutes", type=positive, metavar="N", default=8, help=text)
    text = "timed calls of each variant"
    p.add_argument("--rounds", type=positive, metavar="N", default=20, help=text)
    text = "use tiny UNets, to see that the command works"
    p.add_argument("--dry-run", action="store_true", help=text)
    text = (
        "what `store export` wrote of code that `prebuild --for` compiled for this card and torch; "
        "every unit is checked here before it serves"
    )
    p.add_argument("--carried", type=path, metavar="FILE", help=text)
    p.add_argument("--key", type=path, metavar="FILE", help="the key file that it was signed with")
    text = "accept it without a signature; be sure of its origin"
    p.add_argument("--allow-unsigned", action="store_true", help=text)
    text = "what `bench --model --json` printed, to compare launches with; repeat it for several"
    p.add_argument("--model", type=path, metavar="FILE", action="append", default=[], help=text)
    add_results_argument(p)
    add_store_arguments(p)
    add_device_arguments(p)
