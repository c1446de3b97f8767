"""The arguments of `demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import Commands, add_engine_arguments, command, image_size, positive

_MORE = """The first run compiles, which takes some minutes; pictures are made meanwhile. Later runs
find the artifact in the store, for any checkpoint of the same architecture, any size and any LoRA.
Without --checkpoint a small random one is made: its pictures are coloured noise, and what counts is
that they are the same with acceleration off and on. "Off" is the same UNet run by torch.

Look at report.html (or report.png) in the folder --out. The exit status is 1 when a picture is not
what it should be.

examples:
  PROGRAM demo
  PROGRAM demo --checkpoint model.safetensors --lora style.safetensors:0.8 \
--size 512 --steps 20"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    summary = "make pictures with acceleration off and on, with and without a LoRA, and a report"
    p = command(commands, "demo", summary, _MORE)
    text = "a .safetensors or .ckpt file (default: a small random one)"
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help=text)
    text = "may be repeated (default: a random one)"
    p.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help=text)
    text = "width and height in pixels, a multiple of 8"
    p.add_argument("--size", type=image_size, metavar="N", default=256, help=text)
    text = "guided steps; each is one UNet call at batch 2"
    p.add_argument("--steps", type=positive, metavar="N", default=6, help=text)
    p.add_argument("--seed", type=seed, metavar="N", default=1, help="seed of the noise")
    text = "width of the random checkpoint, a multiple of 32; 320 is the real width"
    p.add_argument("--channels", type=positive, metavar="N", default=64, help=text)
    text = "folder of the report"
    p.add_argument("--out", type=Path, metavar="DIR", default=Path("accel-report"), help=text)
    add_engine_arguments(p)


def seed(text: str) -> int:
    """Parse a seed as torch takes it."""
    if not -(2**63) <= (number := int(text)) < 2**63:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of 64 bits")
    return number
