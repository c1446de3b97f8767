"""The arguments of `prebuild`."""

from __future__ import annotations

import argparse
import re

from .common import Commands, add_device_arguments, add_store_arguments, command, home, positive

_FOR = re.compile(r"cuda:sm_([1-9][0-9]{1,2})|cpu:(x86-64-v[234])")

VAE = "vae"
"""The family of the units of a VAE, which those of SD1, SD2 and SDXL share."""

_NO_DLL = (
    "--windows: code of AOTInductor for Windows could be linked here, and nobody has ever loaded "
    "any: it would depend on the Windows names of torch's and CUDA's libraries. Expected --backend "
    "kernels or tensorrt, whose code has no part for the system, or this command under Windows."
)

_MORE = """Compiled code depends on the architecture, the dtype, the compute capability of the GPU
(or the instruction set of the CPU) and the torch version; never on the checkpoint, the size, the
batch, the prompt's length or a LoRA. So one run per architecture is all that is needed. Units that
are in the store already, also from another architecture or an interrupted run, are not compiled
again. Inpainting and edit models need no units of their own.

To seed a fleet: prebuild on one machine, `store export all --to fleet.zip --key ~/fleet.key`, and
on every machine of the same kind `store import fleet.zip --key ~/fleet.key`.

With --backend kernels it compiles the fused kernels and checks them on this card, in seconds and
without a compiler to be installed.

With --backend tensorrt it builds engines of TensorRT for RTX, which must be installed
(pip install tensorrt_rtx). That needs no GPU, and an engine serves every card of its kind, under
Windows and Linux, with every torch.

With --for it compiles for cards that this machine does not have, or for processors that can do
less. Code for a card comes unchecked: each machine checks it when it first loads it, before it
serves. For aoti that needs Linux and gcc, and takes this Python's torch if it was made for CUDA,
else one of its own (7 GB, once). As no card can be asked which variant is fastest, it is untuned.

examples:
  PROGRAM prebuild --family sd1 --family sdxl --family vae
  PROGRAM prebuild --family model.safetensors --dtype bfloat16
  PROGRAM prebuild --family sd1 --for cuda:sm_86 --for cuda:sm_89 --torch 2.10
  PROGRAM prebuild --family sd1 --for cpu:x86-64-v3
  PROGRAM prebuild --family sd1 --backend tensorrt --for cuda:sm_86 --for cuda:sm_75"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    p = command(commands, "prebuild", "compile artifacts ahead of time into the store", _MORE)
    p.add_argument(
        "--family",
        action="append",
        type=home,
        required=True,
        metavar="NAME",
        help="sd1, sd2, sdxl, sdxl-refiner, vae (that of SD1, SD2 and SDXL), or a checkpoint "
        "file; may be repeated",
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
        "--for",
        dest="places",
        action="append",
        type=place,
        default=[],
        metavar="MACHINE",
        help="cuda:sm_86, cpu:x86-64-v3 and the like; may be repeated (default: this machine)",
    )
    p.add_argument(
        "--torch",
        metavar="VERSION",
        help="with --for cuda:...: the torch there, as 2.10 or 2.10.0+cu128 (default: this "
        "Python's, if it was made for CUDA)",
    )
    p.add_argument(
        "--windows",
        action="store_true",
        help="with --for cuda:... and --backend kernels: for Windows; experimental, as nobody has "
        "loaded any yet",
    )
    add_store_arguments(p)
    add_device_arguments(p)


def place(text: str) -> str:
    """Check a machine that code is to be for."""
    if _FOR.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected cuda:sm_86 or the like, or cpu:x86-64-v2, -v3 or -v4"
        )
    return text


def number_of(word: str) -> tuple[str, int]:
    """Return "cuda" and 86 for `cuda:sm_86`, "cpu" and 0 for a processor."""
    found = _FOR.fullmatch(word)
    assert found is not None
    return ("cuda", int(found[1])) if found[1] else ("cpu", 0)


def require_possible(args: argparse.Namespace) -> None:
    """Raise ArgumentTypeError where arguments do not go together."""
    kinds = {number_of(word)[0] for word in args.places}
    if args.backend != "aoti" and any(name.partition(":")[0] == VAE for name in args.family):
        raise argparse.ArgumentTypeError(f"--family vae: {args.backend} computes UNets alone")
    if args.windows and args.backend == "aoti":
        raise argparse.ArgumentTypeError(_NO_DLL)
    if (args.torch or args.windows) and "cuda" not in kinds:
        raise argparse.ArgumentTypeError(
            "--torch and --windows say for what --for cuda:... compiles, and there is none"
        )
    if "cpu" in kinds and args.backend != "aoti":
        raise argparse.ArgumentTypeError(f"--for cpu:...: {args.backend} is for cards alone")
    if args.places and args.device:
        raise argparse.ArgumentTypeError("--device is a device of this machine; --for is none")
