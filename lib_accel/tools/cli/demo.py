"""`demo`: make images with acceleration off and on, with and without a LoRA, and a report."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from ...config import MIB
from ...model import presets
from ...model.architecture import Architecture
from ...model.random_weights import random_weights
from ...runtime.lora_files import Deltas, parse_tag, random_deltas, read_lora
from ..checkpoint import open_checkpoint
from ..demo.clock import ON_A_GPU, Clock, Images
from ..demo.measure import Demo, Plan
from ..report.page import write_report
from ..report.words import facts, headline
from ..setup_environment import BEGAN
from .common import (
    Commands,
    add_engine_arguments,
    command,
    device_and_dtype,
    follow,
    image_size,
    make_config,
    positive,
    say,
    show,
)

REAL, HALF = 320, 160
"""Channels of SD1's first level, and half of them."""
NEEDED_MIB = 6 * 1024
"""Free memory that the real width takes: weights in float32, compilers, and a LoRA's base."""

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
  python -m lib_accel demo
  python -m lib_accel demo --checkpoint model.safetensors --lora style.safetensors:0.8 \\
      --size 512 --steps 20"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    summary = "make images with acceleration off and on, with and without a LoRA, and a report"
    p = command(commands, "demo", summary, run, _MORE)
    text = "a .safetensors or .ckpt file (default: random weights)"
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help=text)
    text = "may be repeated (default: a random one)"
    p.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help=text)
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
    p.add_argument("--out", type=Path, metavar="DIR", default=Path("accel-report"), help=text)
    add_engine_arguments(p)


def seed(text: str) -> int:
    """Parse a seed as torch takes it."""
    if not -(2**63) <= (number := int(text)) < 2**63:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of 64 bits")
    return number


def run(args: argparse.Namespace) -> int:
    """Make the pictures, write the report and print a summary."""
    device, dtype = device_and_dtype(args)
    args.out.mkdir(parents=True, exist_ok=True)
    clock = Clock(args.minutes, say, _began())
    channels = args.channels or _channels(device)
    _announce(args, clock, device, channels)
    with clock.phase("making the weights" if args.checkpoint is None else "loading the weights"):
        architecture, parameters = _model(args, channels, device, dtype)
        loras = _loras(args, architecture)
    plan = Plan(
        architecture,
        parameters,
        make_config(args, args.backend),
        device,
        loras,
        args.lora,
        _images(args, device),
        args.seed,
    )
    result, pictures = Demo(plan, clock, follow).measure()
    result |= {
        "checkpoint": str(args.checkpoint) if args.checkpoint else None,
        "random_weights": args.checkpoint is None,
        "channels": architecture.model_channels,
        "date": time.strftime("%Y-%m-%d"),
    }
    result["report"] = str(write_report(args.out, result, pictures, architecture))
    show(result, args, _summary(result))
    return _exit_status(result)


def _began() -> float | None:
    began = os.environ.get(BEGAN)
    return float(began) if began else None


def _channels(device: torch.device) -> int:
    """Return the real width, or half of it where memory is short."""
    free = psutil.virtual_memory().available / MIB
    if device.type == "cuda" or free >= NEEDED_MIB:
        return REAL
    say(f"{free / 1024:.1f} GiB of memory are free, and the real size takes {NEEDED_MIB / 1024:g}")
    return HALF


def _announce(args: argparse.Namespace, clock: Clock, device: torch.device, width: int) -> None:
    size = {REAL: "at its real size", HALF: "at half its width"}.get(width, f"{width} wide")
    what = f"SD1.5 {size}, with random weights" if args.checkpoint is None else args.checkpoint.name
    limit = "" if _images(args, device) else f"It ends within {args.minutes} minutes. "
    clock.say(
        f"{what}, on {device}. {limit}It compiles the UNet for this machine (kept in {args.store}, "
        "some MB), makes the same images with acceleration off and on, with and without a LoRA, "
        f"and writes {args.out / 'report.html'}"
    )


def _images(args: argparse.Namespace, device: torch.device) -> Images | None:
    if args.size is None and args.steps is None:
        return None
    size, steps = ON_A_GPU if device.type == "cuda" else (256, 6)
    return Images(args.size or size, args.steps or steps)


def _model(
    args: argparse.Namespace, channels: int, device: torch.device, dtype: torch.dtype
) -> tuple[Architecture, Any]:
    if args.checkpoint:
        checkpoint = open_checkpoint(args.checkpoint)
        return checkpoint.architecture(), checkpoint.load_unet(device, dtype)
    architecture = presets.sd1(channels)
    weights = random_weights(architecture, dtype, seed=0)
    return architecture, {
        name: torch.nn.Parameter(p.data.to(device), requires_grad=False)
        for name, p in weights.items()
    }


def _loras(args: argparse.Namespace, architecture: Architecture) -> list[tuple[Deltas, float]]:
    tags = [parse_tag(t) for t in args.lora]
    if not tags:
        return [(random_deltas(architecture, rank=16, seed=1), 0.8)]
    return [(read_lora(path, architecture), strength) for path, strength in tags]


def _summary(r: dict[str, Any]) -> str:
    note = [f"note: {r['reason']}"] if r["reason"] else []
    return "\n".join([headline(r), *note, *facts(r), f"report: {r['report']}"])


def _exit_status(r: dict[str, Any]) -> int:
    """Return 1 and say why, where a picture is not what it should be."""
    if not r["same_after_lora"]:
        say(
            "error: the picture after removing the LoRA differs from the one before; "
            "expected the same bits. Please report this"
        )
    if not r["error_ok"]:
        say(
            f"error: with acceleration the error of a UNet call is {r['error_on']:.1e}, without "
            f"{r['error_off']:.1e}; expected about the same. Please report this"
        )
    return 0 if r["same_after_lora"] and r["error_ok"] else 1
