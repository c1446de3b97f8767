"""The arguments of `gpu`."""

from __future__ import annotations

from .common import (
    Commands,
    add_device_arguments,
    add_results_argument,
    add_store_arguments,
    command,
    positive,
)

_MORE = """The steps come in the order of their importance. A step that would begin after --minutes
is left out. Every step writes its own JSON and table. Needs torch, triton and, for the reference
rows, diffusers. --dry-run runs all steps with tiny UNets, on a CPU too."""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    p = command(commands, "gpu", "measure everything that only a GPU can show", _MORE)
    text = "begin no step later than this"
    p.add_argument("--minutes", type=positive, metavar="N", default=9, help=text)
    text = "timed calls of each variant"
    p.add_argument("--rounds", type=positive, metavar="N", default=20, help=text)
    text = "use tiny UNets, to see that the command works"
    p.add_argument("--dry-run", action="store_true", help=text)
    add_results_argument(p)
    add_store_arguments(p)
    add_device_arguments(p)
