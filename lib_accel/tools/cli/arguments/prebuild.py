"""The arguments of `prebuild`."""

from __future__ import annotations

import argparse

from .common import Commands, add_device_arguments, add_store_arguments, command, positive

CARDS = ("ampere+", "turing")
"""As compile/backends/tensorrt/build.py: CARDS, which takes a second to import."""

_MORE = """Compiled code depends on the architecture, the dtype, the compute capability of the GPU
(or the instruction set of the CPU) and the torch version; never on the checkpoint, the size, the
batch, the prompt's length or a LoRA. So one run per architecture is all that is needed. Units that
are in the store already, also from another architecture or an interrupted run, are not compiled
again. Inpainting and edit models need no units of their own.

To seed a fleet: prebuild on one machine, `store export all --to fleet.zip --key fleet.key`, and on
every machine of the same kind `store import fleet.zip --key fleet.key`.

With --backend kernels it compiles the fused kernels and checks them on this card, in seconds and
without a compiler to be installed.

With --backend tensorrt it builds engines of TensorRT for RTX, which must be installed
(pip install tensorrt_rtx). That needs no GPU, and an engine serves every card of its kind, under
Windows and Linux, with every torch.

examples:
  PROGRAM prebuild --family sd1 --family sdxl
  PROGRAM prebuild --family model.safetensors --dtype bfloat16
  PROGRAM prebuild --family sd1 --backend tensorrt --cards ampere+,turing"""


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
    p.add_argument(
        "--backend",
        choices=("aoti", "kernels", "tensorrt"),
        default="aoti",
        metavar="NAME",
        help="what the code is for: aoti, kernels or tensorrt",
    )
    p.add_argument(
        "--cards",
        type=cards,
        default="ampere+",
        metavar="NAMES",
        help="with tensorrt: ampere+ (from RTX 30 on), turing (RTX 20 and GTX 16), or both",
    )
    add_store_arguments(p)
    add_device_arguments(p)


def cards(text: str) -> list[str]:
    """Parse names of kinds of cards, separated by commas."""
    names = text.split(",")
    if unknown := [name for name in names if name not in CARDS]:
        expected = " and ".join(CARDS)
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected one of {expected}, or both")
    return names
