"""`demo`: make a picture with acceleration off and on, with and without a LoRA, and a report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...errors import BadWeights
from ...model import presets
from ...model.architecture import Architecture
from ...model.precision import relative_error
from ...model.unet import UNet
from ...model.weight_files import finite
from ...runtime.engine import Engine
from ...runtime.lora_files import Merger, parse_tag, random_deltas, read_lora, save_lora
from ...runtime.lora_merge import LowRank
from ..bench.measure import precise_call, synchronize, timed
from ..checkpoint import open_checkpoint, save_random_checkpoint
from ..sampling import Conditions, Denoiser, sample
from ..terminal import say, show
from .common import device_and_dtype, follow, make_config
from .report import Picture, write_report


def run(args: argparse.Namespace) -> int:
    """Make the pictures, write the report and print a summary."""
    device, dtype = device_and_dtype(args)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(args.checkpoint or _random_checkpoint(args))
    architecture = checkpoint.architecture()
    loras = _loras(args, architecture)
    say(f"{checkpoint.path.name}: {architecture.name}, {dtype}, on {device}")
    unet = UNet(architecture).adopt(checkpoint.load_unet(device, dtype))
    conditions = Conditions(architecture, args.size, args.size, args.seed, device)

    started = time.monotonic()
    engine = Engine(unet, make_config(args, args.backend))
    first_image = _make_ready(engine, conditions, args.steps)
    ready = time.monotonic() - started
    both: dict[str, Denoiser] = {"off": unet, "on": engine.compute}
    pictures = _pictures(both, conditions, args.steps)

    merger, compiles = Merger(dict(unet.named_parameters())), engine.counters.compiles
    merge_s, _ = timed(lambda: merger.set(loras), device)
    _check_merged(unet, args.lora)
    with_lora = {f"{label}, LoRA": denoiser for label, denoiser in both.items()}
    pictures += _pictures(with_lora, conditions, args.steps)
    merger.set([])
    again = _pictures({"LoRA removed": engine.compute}, conditions, args.steps)[0]

    result = {
        **_status(engine),
        **_comparison(unet, engine, pictures, conditions),
        "seconds_to_first_image": None if first_image is None else round(first_image, 2),
        "seconds_until_ready": round(ready, 2),
        "lora_merge_seconds": round(merge_s, 3),
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
    return _exit_status(result)


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


def _check_merged(unet: UNet, loras: list[str]) -> None:
    """Raise BadWeights where finite LoRAs made weights infinite."""
    bad = next((name for name, p in unet.named_parameters() if not finite(p)), None)
    if bad:
        raise BadWeights(
            f"with {', '.join(loras)} merged, {bad} is too large for its dtype. Expected finite "
            "weights. Use smaller strengths or --dtype float32"
        )


def _make_ready(engine: Engine, conditions: Conditions, steps: int) -> float | None:
    """Wait for compiled code, and make one picture meanwhile.

    Returns the seconds until that picture; None where nothing had to be compiled.
    """
    started = time.monotonic()
    engine.prepare()
    status, first_image = engine.status, None
    reason = f" ({status.reason})" if status.reason else ""
    say(f"backend {status.backend}: {status.state}{reason}")
    if engine.job:
        say("while the compiler works, a picture is made without acceleration")
        _pictures({"meanwhile": engine.compute}, conditions, steps)
        first_image = time.monotonic() - started
        follow(engine.job, "compiling")
        engine.take_up()
    return first_image


def _pictures(unets: dict[str, Denoiser], conditions: Conditions, steps: int) -> list[Picture]:
    """Make a picture with each UNet, step by step in turn.

    Whatever slows the machine meanwhile slows all of them.
    """
    pictures = [Picture(label, conditions.latent) for label in unets]
    running: list[Iterator[Tensor]] = [sample(unet, conditions, steps) for unet in unets.values()]
    label = " / ".join(unets)
    with (
        torch.no_grad(),
        tqdm(total=steps * len(unets), desc=label, leave=False, disable=None) as bar,
    ):
        for _ in range(steps):
            for picture, latents in zip(pictures, running, strict=True):
                start = time.perf_counter()
                picture.latent = next(latents)
                synchronize(conditions.latent.device)
                picture.seconds.append(time.perf_counter() - start)
                bar.update()
    return pictures


def _status(engine: Engine) -> dict[str, Any]:
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
    }


def _comparison(
    unet: UNet, engine: Engine, pictures: list[Picture], conditions: Conditions
) -> dict[str, Any]:
    """Compare speeds, the error of one UNet call against higher precision, and pictures."""
    off, on, off_lora, on_lora = pictures
    x = torch.cat([conditions.latent, conditions.latent])
    if conditions.extra is not None:
        x = torch.cat([x, conditions.extra], dim=1)
    timesteps = torch.tensor([500.0, 500.0], device=x.device)
    inputs = (x, timesteps, conditions.context, conditions.y)
    reference = precise_call(engine.architecture, dict(unet.named_parameters()), *inputs)
    with torch.no_grad():
        errors = [relative_error(f(*inputs), reference) for f in (unet, engine.compute)]
    return {
        "seconds_per_step": {p.label: round(p.step, 5) for p in pictures},
        "speedup": round(off.step / on.step, 3),
        "speedup_with_lora": round(off_lora.step / on_lora.step, 3),
        "error_off": errors[0],
        "error_on": errors[1],
        "error_ok": errors[1] <= 1.25 * errors[0] + torch.finfo(unet.dtype).eps / 4,
        "latent_difference": relative_error(on.latent, off.latent),
        "latent_difference_lora": relative_error(on_lora.latent, off_lora.latent),
        "lora_effect": relative_error(off_lora.latent, off.latent),
    }


def _summary(r: dict[str, Any]) -> str:
    first = ""
    if r["seconds_to_first_image"] is not None:
        first = f"first picture after {r['seconds_to_first_image']} s, not accelerated yet; "
    seconds = "; ".join(f"{k} {v:.4f}" for k, v in r["seconds_per_step"].items())
    same = "bit-identical" if r["same_after_lora"] else "DIFFERENT"
    lines = [
        f"{r['architecture']} on {r['device']}, {r['dtype']}, {r['size']}x{r['size']}, "
        f"{r['steps']} guided steps, backend {r['backend']} ({r['state']})",
        *([f"note: {r['reason']}"] if r["reason"] else []),
        f"seconds a step: {seconds}",
        f"speed-up {r['speedup']:.2f}x, with LoRA {r['speedup_with_lora']:.2f}x",
        f"{first}ready after {r['seconds_until_ready']} s",
        f"error of a UNet call against higher precision: off {r['error_off']:.1e}, "
        f"on {r['error_on']:.1e}",
        f"pictures off and on differ by {r['latent_difference']:.1e}, with LoRA by "
        f"{r['latent_difference_lora']:.1e}; the LoRA changes them by {r['lora_effect']:.2f}",
        f"units compiled: {r['compiled_units']}, for the LoRA: {r['compiles_for_lora']}",
        f"LoRA merged in {r['lora_merge_seconds']} s; removed again, the picture is {same}",
        f"report: {r['report']}",
    ]
    return "\n".join(lines)


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
