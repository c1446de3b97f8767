"""`demo`: the main job in small. Opens a checkpoint, compiles or takes from the store, samples with acceleration off and on."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import presets
from ..checkpoint import open_checkpoint, save_random_checkpoint
from ..engine import Engine
from ..lora import Merger, parse_tag, random_deltas, read_lora, save_lora
from ..sampling import Denoiser, Noise, sample
from ..unet import UNet
from .common import Commands, add_engine_arguments, command, device_and_dtype, follow, make_config, say, show
from .report import write_report


def add(commands: Commands) -> None:
    p = command(commands, "demo", "sample an image with acceleration off and on, with and without LoRA, and write a report", run)
    p.add_argument("--checkpoint", type=Path, help="a .safetensors or .ckpt file (default: a small random one in the real layout)")
    p.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="may be repeated (default: a random one)")
    p.add_argument("--size", type=int, default=256, help="width and height in pixels, a multiple of 8")
    p.add_argument("--steps", type=int, default=6, help="guided steps, each one UNet call at batch 2")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--channels", type=int, default=64, help="width of the random checkpoint; 320 is the real size")
    p.add_argument("--out", type=Path, default=Path("accel-report"), help="folder of the report")
    add_engine_arguments(p)


@dataclass
class Picture:
    """One sampled image: its latents, and the seconds of each step."""

    label: str
    latent: Tensor
    seconds: list[float]

    @property
    def step(self) -> float:
        """Median seconds a step; the first one warms up."""
        return statistics.median(self.seconds[1:] or self.seconds)


def run(args: argparse.Namespace) -> int:
    if args.size % 8 or args.size < 64:
        raise ValueError(f"--size is {args.size}; expected a multiple of 8, at least 64")
    device, dtype = device_and_dtype(args)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(args.checkpoint or _random_checkpoint(args))
    architecture = checkpoint.architecture()
    say(f"{checkpoint.path.name}: {architecture.name}, {dtype}, on {device}")
    donor = UNet(architecture).adopt(checkpoint.load_unet(device, dtype))

    started = time.monotonic()
    engine = Engine(donor, make_config(args))
    engine.prepare()
    noise = Noise(architecture, args.size, args.size, args.seed, device)
    say(f"backend {engine.status.backend}: {engine.status.state}")
    if engine.job:
        say("images are made without acceleration while the compiler works; here is one")
    first = _picture("off", donor, noise, args.steps)
    waited = time.monotonic() - started
    if engine.job:
        follow(engine.job, "compiling", args.json)
    engine.take_up()
    ready = time.monotonic() - started
    pictures = [_picture("off", donor, noise, args.steps) if engine.counters.compiles else first]
    pictures.append(_picture("on", engine, noise, args.steps))

    merger = Merger(dict(donor.named_parameters()))
    compiles = engine.counters.compiles
    loras = _loras(args, architecture)
    merge_started = time.monotonic()
    merger.set(loras)
    merge_s = time.monotonic() - merge_started
    pictures.append(_picture("off, LoRA", donor, noise, args.steps))
    pictures.append(_picture("on, LoRA", engine, noise, args.steps))
    merger.set([])
    again = _picture("on, LoRA removed", engine, noise, args.steps)

    result = {
        **_results(engine, pictures, noise, donor),
        "seconds_to_first_image": round(waited, 2),
        "seconds_until_accelerated": round(ready, 2),
        "lora_merge_seconds": round(merge_s, 3),
        "compiles_for_lora": engine.counters.compiles - compiles,
        "same_after_lora": bool((again.latent == pictures[1].latent).all()),
        "checkpoint": str(checkpoint.path),
        "size": args.size,
        "steps": args.steps,
    }
    result["report"] = str(write_report(args.out, result, pictures, architecture))
    engine.close()
    show(result, args, _summary(result))
    return 0 if result["same_after_lora"] and result["error_ok"] else 1


def _random_checkpoint(args: argparse.Namespace) -> Path:
    path = args.out / f"random-sd1-{args.channels}.safetensors"
    if not path.exists():
        say(f"no --checkpoint: making a random SD1 of width {args.channels} at {path}")
        save_random_checkpoint(path, presets.sd1(args.channels), torch.float32, seed=0)
    return path


def _loras(args: argparse.Namespace, architecture: Any) -> list[tuple[Any, float]]:
    tags = [parse_tag(t) for t in args.lora]
    if not tags:
        path = args.out / "random-lora.safetensors"
        save_lora(path, architecture, random_deltas(architecture, rank=16, seed=1))
        tags = [(path, 0.8)]
    return [(read_lora(path, architecture), strength) for path, strength in tags]


def _picture(label: str, unet: Denoiser | nn.Module, noise: Noise, steps: int) -> Picture:
    marks = [time.perf_counter()]

    def mark(_: int) -> None:
        if noise.latent.is_cuda:
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    with torch.no_grad():
        latent = sample(unet, noise, steps, on_step=mark)
    return Picture(label, latent, [b - a for a, b in itertools.pairwise(marks)])


def _results(engine: Engine, pictures: list[Picture], noise: Noise, donor: UNet) -> dict[str, Any]:
    """Speed, error of one UNet call against float32 (off and on), and how far the pictures are apart."""
    off, on, off_lora, on_lora = pictures
    x = torch.cat([noise.latent, noise.latent])
    if noise.extra is not None:
        x = torch.cat([x, noise.extra], dim=1)
    t = torch.tensor([500.0, 500.0], device=x.device)
    with torch.no_grad():
        precise = UNet(engine.architecture).adopt({k: nn.Parameter(p.double(), requires_grad=False) for k, p in donor.named_parameters()})
        reference = precise(x.double(), t, noise.context, noise.y)
        errors = [_relative(f(x, t, noise.context, noise.y), reference) for f in (donor, engine)]
    s = engine.status
    return {
        "backend": s.backend,
        "state": s.state,
        "reason": s.reason,
        "architecture": s.architecture,
        "dtype": s.dtype,
        "device": s.device,
        "torch": torch.__version__,
        "artifact": s.artifact,
        "compiled_units": engine.counters.compiles,
        "seconds_per_step": {p.label: round(p.step, 5) for p in pictures},
        "speedup": round(off.step / on.step, 3),
        "speedup_with_lora": round(off_lora.step / on_lora.step, 3),
        "error_off": errors[0],
        "error_on": errors[1],
        "error_ok": errors[1] <= 1.25 * errors[0] + torch.finfo(donor.dtype).eps / 4,
        "latent_difference": _relative(on.latent, off.latent),
        "latent_difference_lora": _relative(on_lora.latent, off_lora.latent),
        "lora_effect": _relative(off_lora.latent, off.latent),
    }


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def _summary(r: dict[str, Any]) -> str:
    lines = [
        f"{r['architecture']} on {r['device']}, {r['dtype']}, {r['size']}x{r['size']}, {r['steps']} guided steps, "
        f"backend {r['backend']} ({r['state']})",
        *([f"note: {r['reason']}"] if r["reason"] else []),
        "seconds a step: " + ", ".join(f"{k} {v:.4f}" for k, v in r["seconds_per_step"].items()),
        f"speed-up {r['speedup']:.2f}x, with LoRA {r['speedup_with_lora']:.2f}x",
        f"first image after {r['seconds_to_first_image']} s, no compiler waited for; accelerated after {r['seconds_until_accelerated']} s",
        f"error of a UNet call against float64: off {r['error_off']:.1e}, on {r['error_on']:.1e}",
        f"pictures off and on differ by {r['latent_difference']:.1e} (with LoRA {r['latent_difference_lora']:.1e}; "
        f"the LoRA itself changes them by {r['lora_effect']:.2f})",
        f"units compiled {r['compiled_units']}, for the LoRA {r['compiles_for_lora']}; LoRA merged in {r['lora_merge_seconds']} s; "
        f"removed again, the picture is {'bit-identical' if r['same_after_lora'] else 'DIFFERENT'}",
        f"report: {r['report']}",
    ]
    return "\n".join(lines)
