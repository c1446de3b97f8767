"""The arguments of `prebuild`."""

from __future__ import annotations

from .common import Commands, add_device_arguments, add_store_arguments, command, positive

_MORE = """Compiled code depends on the architecture, the dtype, the compute capability of the GPU
(or the instruction set of the CPU) and the torch version; never on the checkpoint, the size, the
batch, the prompt's length or a LoRA. So one run per architecture is all that is needed. Units that
are in the store already, also from another architecture or an interrupted run, are not compiled
again. Inpainting and edit models need no units of their own.

To seed a fleet: prebuild on one machine, `store export all --to fleet.zip --key fleet.key`, and on
every machine of the same kind `store import fleet.zip --key fleet.key`.

examples:
  PROGRAM prebuild --family sd1 --family sdxl
  PROGRAM prebuild --family model.safetensors --dtype bfloat16"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    p = command(commands, "prebuild", "compile artifacts ahead of time into the store", _MORE)
    p.add_argument(
        "--family",
        action="append",
        required=True,
        metavar="NAME",
        help="sd1, sd2, sdxl, sdxl-refiner, or a checkpoint file; may be repeated",
    )
    p.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="compiling processes (default: by the machine)",
    )
    add_store_arguments(p)
    add_device_arguments(p)
