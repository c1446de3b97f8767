"""`demo`: the main job in small. Opens a checkpoint, compiles or takes from the store, samples with acceleration off and on."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...model import presets
from ...model.architecture import Architecture
from ...model.precision import relative_error
from ...model.unet import UNet
from ...runtime.engine import Engine
from ...runtime.lora_files import Merger, parse_tag, random_deltas, read_lora, save_lora
from ...runtime.lora_merge import LowRank
from ..bench.measure import precise_call, synchronize
from ..checkpoint import open_checkpoint, save_random_checkpoint
from ..sampling import Denoiser, Noise, sample
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
from .report import write_report

_MORE = """The first run compiles, which takes some minutes; nothing waits for it. Later runs find the result in the store, for any
checkpoint of the same architecture, any size and any LoRA. Without --checkpoint a small random one is made: its pictures
are coloured noise, what counts is that they are the same with acceleration off and on. "Off" is the same UNet run by torch.

Look at report.html (or report.png) in the folder --out. Exit status 1 when a picture is not what it should be.

examples:
  python -m lib_accel demo
  python -m lib_accel demo --checkpoint model.safetensors --lora style.safetensors:0.8 --size 512 --steps 20"""


def add(commands: Commands) -> None:
    p = command(
        commands,
        "demo",
        "sample with acceleration off and on, with and without LoRA, and write a report",
        run,
        _MORE,
    )
    p.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="a .safetensors or .ckpt file (default: a small random one)",
    )
    p.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="may be repeated (default: a random one)",
    )
    p.add_argument(
        "--size",
        type=image_size,
        metavar="N",
        default=256,
        help="width and height in pixels, a multiple of 8",
    )
    p.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        default=6,
        help="guided steps, each one UNet call at batch 2",
    )
    p.add_argument("--seed", type=int, metavar="N", default=1, help="of the noise")
    p.add_argument(
        "--channels",
        type=positive,
        metavar="N",
        default=64,
        help="width of the random checkpoint, a multiple of 32; 320 is the real size",
    )
    p.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("accel-report"), help="folder of the report"
    )
    add_engine_arguments(p)


@dataclass
class Picture:
    """One sampled image: its latents, and the seconds of each step."""

    label: str
    latent: Tensor
    seconds: list[float] = field(default_factory=list)

    @property
    def step(self) -> float:
        """Median seconds a step; the first one warms up."""
        return statistics.median(self.seconds[1:] or self.seconds)


def run(args: argparse.Namespace) -> int:
    device, dtype = device_and_dtype(args)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(args.checkpoint or _random_checkpoint(args))
    architecture = checkpoint.architecture()
    loras = _loras(args, architecture)
    say(f"{checkpoint.path.name}: {architecture.name}, {dtype}, on {device}")
    donor = UNet(architecture).adopt(checkpoint.load_unet(device, dtype))
    noise = Noise(architecture, args.size, args.size, args.seed, device)

    started = time.monotonic()
    engine = Engine(donor, make_config(args, args.backend))
    engine.prepare()
    say(
        f"backend {engine.status.backend}: {engine.status.state}"
        + (f" ({engine.status.reason})" if engine.status.reason else "")
    )
    waited = None
    if engine.job:
        say("images are made without acceleration while the compiler works; here is one")
        _pictures({"meanwhile": engine.compute}, noise, args.steps)
        waited = time.monotonic() - started
        follow(engine.job, "compiling")
        engine.take_up()
    ready = time.monotonic() - started
    pictures = _pictures({"off": donor, "on": engine.compute}, noise, args.steps)

    merger, compiles = Merger(dict(donor.named_parameters())), engine.counters.compiles
    merge_started = time.monotonic()
    merger.set(loras)
    merged = time.monotonic() - merge_started
    pictures += _pictures({"off, LoRA": donor, "on, LoRA": engine.compute}, noise, args.steps)
    merger.set([])
    again = _pictures({"LoRA removed": engine.compute}, noise, args.steps)[0]

    result = {
        **_results(engine, pictures, noise, donor),
        "seconds_to_first_image": None if waited is None else round(waited, 2),
        "seconds_until_ready": round(ready, 2),
        "lora_merge_seconds": round(merged, 3),
        "compiles_for_lora": engine.counters.compiles - compiles,
        "same_after_lora": bool((again.latent == pictures[1].latent).all()),
        "checkpoint": str(checkpoint.path),
        "random_weights": args.checkpoint is None,
        "size": args.size,
        "steps": args.steps,
    }
    result["report"] = str(write_report(args.out, result, pictures, architecture))
    engine.close()
    show(result, args, _summary(result))
    return _verdict(result)


def _random_checkpoint(args: argparse.Namespace) -> Path:
    path = args.out / f"random-sd1-{args.channels}.safetensors"
    if not path.exists():
        say(f"no --checkpoint: making a random SD1 of width {args.channels} at {path}")
        save_random_checkpoint(path, presets.sd1(args.channels), torch.float32, seed=0)
    return path


def _loras(
    args: argparse.Namespace, architecture: Architecture
) -> list[tuple[dict[str, LowRank], float]]:
    tags = [parse_tag(t) for t in args.lora]
    if not tags:
        path = args.out / "random-lora.safetensors"
        save_lora(path, architecture, random_deltas(architecture, rank=16, seed=1))
        tags = [(path, 0.8)]
    return [(read_lora(path, architecture), strength) for path, strength in tags]


def _pictures(unets: dict[str, Denoiser], noise: Noise, steps: int) -> list[Picture]:
    """A picture by each UNet, made step by step in turn: whatever else the machine does meanwhile slows all of them alike."""
    pictures = [Picture(label, noise.latent) for label in unets]
    running: list[Iterator[Tensor]] = [sample(unet, noise, steps) for unet in unets.values()]
    with (
        torch.no_grad(),
        tqdm(total=steps * len(unets), desc=" / ".join(unets), unit="step", leave=False) as bar,
    ):
        for _ in range(steps):
            for picture, steps_of in zip(pictures, running, strict=True):
                start = time.perf_counter()
                picture.latent = next(steps_of)
                synchronize(noise.latent.device)
                picture.seconds.append(time.perf_counter() - start)
                bar.update()
    return pictures


def _results(engine: Engine, pictures: list[Picture], noise: Noise, donor: UNet) -> dict[str, Any]:
    """Speed, error of one UNet call against higher precision (off and on), and how far the pictures are apart."""
    off, on, off_lora, on_lora = pictures
    x = torch.cat([noise.latent, noise.latent])
    if noise.extra is not None:
        x = torch.cat([x, noise.extra], dim=1)
    inputs = (x, torch.tensor([500.0, 500.0], device=x.device), noise.context, noise.y)
    reference = precise_call(engine.architecture, dict(donor.named_parameters()), *inputs)
    with torch.no_grad():
        errors = [relative_error(f(*inputs), reference) for f in (donor, engine.compute)]
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
        "latent_difference": relative_error(on.latent, off.latent),
        "latent_difference_lora": relative_error(on_lora.latent, off_lora.latent),
        "lora_effect": relative_error(off_lora.latent, off.latent),
    }


def _summary(r: dict[str, Any]) -> str:
    first = (
        ""
        if r["seconds_to_first_image"] is None
        else f"first image after {r['seconds_to_first_image']} s, not accelerated yet; "
    )
    lines = [
        f"{r['architecture']} on {r['device']}, {r['dtype']}, {r['size']}x{r['size']}, {r['steps']} guided steps, "
        f"backend {r['backend']} ({r['state']})",
        *([f"note: {r['reason']}"] if r["reason"] else []),
        "seconds a step: " + "; ".join(f"{k} {v:.4f}" for k, v in r["seconds_per_step"].items()),
        f"speed-up {r['speedup']:.2f}x, with LoRA {r['speedup_with_lora']:.2f}x",
        f"{first}ready after {r['seconds_until_ready']} s",
        f"error of a UNet call against higher precision: off {r['error_off']:.1e}, on {r['error_on']:.1e}",
        f"pictures off and on differ by {r['latent_difference']:.1e} (with LoRA {r['latent_difference_lora']:.1e}; "
        f"the LoRA itself changes them by {r['lora_effect']:.2f})",
        f"units compiled: {r['compiled_units']}, for the LoRA {r['compiles_for_lora']}; LoRA merged in {r['lora_merge_seconds']} s; "
        f"removed again, the picture is {'bit-identical' if r['same_after_lora'] else 'DIFFERENT'}",
        f"report: {r['report']}",
    ]
    return "\n".join(lines)


def _verdict(r: dict[str, Any]) -> int:
    """The exit status; a failure is said in words too."""
    if not r["same_after_lora"]:
        say(
            "error: the picture after taking the LoRA out differs from the one before; expected the same bits. Please report this"
        )
    if not r["error_ok"]:
        say(
            f"error: with acceleration the error is {r['error_on']:.1e}, without {r['error_off']:.1e}. Please report this"
        )
    return 0 if r["same_after_lora"] and r["error_ok"] else 1
