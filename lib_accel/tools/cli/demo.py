"""`demo`: make images with acceleration off and on, with and without a LoRA, and a report."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from ...compile.backends.eager import Eager
from ...compile.backends.jit import Jit
from ...config import MIB
from ...model import presets
from ...model.architecture import Architecture
from ...model.random_weights import random_weights
from ...model.weight_files import require_file
from ...runtime.lora.files import A_LORA, Deltas, parse_tag, random_deltas, read_lora
from ..checkpoints.reading import open_checkpoint
from ..demo.clock import ON_A_GPU, Clock, Images
from ..demo.measure import Demo, Plan
from ..report.page import write_report
from ..report.words import facts, headline
from ..setup_environment import BEGAN
from ..terminal import say, show
from .common import device_and_dtype, follow, make_config

REAL, HALF = 320, 160
"""Channels of SD1's first level, and half of them."""
NEEDED_MIB = 6 * 1024
"""Free memory that the real width takes: weights in float32, compilers, and a LoRA's base."""


def run(args: argparse.Namespace) -> int:
    """Make the pictures, write the report and print a summary."""
    device, dtype = device_and_dtype(args)
    tags = [parse_tag(text) for text in args.lora]
    for path, _ in tags:
        require_file(path, A_LORA)
    clock = Clock(args.minutes, say, _began())
    channels = args.channels or _channels(device)
    _announce(args, clock, device, channels)
    with clock.phase("making the weights" if args.checkpoint is None else "loading the weights"):
        architecture, parameters = _model(args, channels, device, dtype)
        loras = _loras(tags, architecture)
    args.out.mkdir(parents=True, exist_ok=True)
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
    compiles = {
        Eager.name: "It compiles nothing",
        Jit.name: "It compiles the UNet for this run",
    }.get(args.backend, f"It compiles the UNet for this machine (kept in {args.store}, some MiB)")
    clock.say(
        f"{what}, on {device}. {limit}{compiles}, makes the same images with acceleration off and "
        f"on, with and without a LoRA, and writes {args.out / 'report.html'}"
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


def _loras(
    tags: list[tuple[Path, float]], architecture: Architecture
) -> list[tuple[Deltas, float]]:
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
