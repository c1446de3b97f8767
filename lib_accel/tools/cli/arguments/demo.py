"""The arguments of `demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import Commands, add_engine_arguments, command, home, image_size, path, positive

_MORE = """It ends within --minutes, on 2 CPU cores too, the set-up of .venv included. Without a
checkpoint the weights are random, in the shapes of SD1.5: the images are noise, and what counts is
that they are the same and how long they take. "Off" is what the WebUI does by itself on this
device: its default attention and torch's own layers.

Without --size and --steps it makes the largest images that fit into the time; on a GPU 512x512
with 20 steps. Where the compiler does not finish in time, the demo goes on without compiled code
and says so. The parts that are finished are kept, so the next run has more time.

Look at report.html in the folder --out; nothing else is written but report.json. The exit status
is 1 where a picture is not what it should be.

examples:
  PROGRAM demo
  PROGRAM demo --checkpoint model.safetensors --lora style.safetensors:0.8 \
--size 512 --steps 20"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    summary = "make images with acceleration off and on, with and without a LoRA, and a report"
    p = command(commands, "demo", summary, _MORE)
    text = "a .safetensors or .ckpt file (default: random weights)"
    p.add_argument("--checkpoint", type=path, metavar="FILE", help=text)
    text = "may be repeated (default: a random one)"
    p.add_argument(
        "--lora", action="append", type=home, default=[], metavar="FILE[:STRENGTH]", help=text
    )
    text = "width and height in pixels, a multiple of 8 (default: what the time allows)"
    p.add_argument("--size", type=image_size, metavar="N", help=text)
    text = "guided steps; each is one UNet call at batch 2 (default: what the time allows)"
    p.add_argument("--steps", type=positive, metavar="N", help=text)
    text = "how long it may take, where --size and --steps are not given"
    p.add_argument("--minutes", type=positive, metavar="N", default=5, help=text)
    p.add_argument("--seed", type=seed, metavar="N", default=1, help="seed of the noise")
    text = "width of the random model, a multiple of 32 (default: 320, the real width)"
    p.add_argument("--channels", type=positive, metavar="N", help=text)
    text = "folder of the report"
    p.add_argument("--out", type=path, metavar="DIR", default=Path("accel-report"), help=text)
    add_engine_arguments(p)


def seed(text: str) -> int:
    """Parse a seed as torch takes it."""
    if not -(2**63) <= (number := int(text)) < 2**63:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of 64 bits")
    return number
