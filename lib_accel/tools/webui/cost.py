"""What the extension costs in a WebUI besides computing: at the start, in a step, switched off.

Two WebUIs run at the same time, one of them with the extension, and make the smallest pictures in
turn. There the time of a picture itself is least; the cost does not depend on the size.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...runtime.lora.files import random_deltas, save_lora
from ...store.private_folder import temporary_folder
from ..checkpoints.reading import open_checkpoint
from .process import WebUI, running

PICTURE = {
    "prompt": "a photo of a cat",
    "steps": 1,
    "width": 64,
    "height": 64,
    "seed": 1,
    "sampler_name": "Euler",
    "cfg_scale": 1,
}
WARM_UP_PICTURES = 3
ROUNDS_OF_CHANGES = 5

PROBE = '''"""Times our own work in a UNet call, by calls in which nothing is computed."""

import statistics
import time

import torch
from modules import script_callbacks, sd_models

from lib_accel.runtime.accelerated import accelerated


@torch.no_grad()
def overhead(calls: int = 200):
    """Return the median milliseconds of a UNet call without its computing; None if not ours."""
    unet = sd_models.model_data.sd_model.model.diffusion_model
    ours = accelerated(unet)
    if ours is None or not ours.engine.can_compute:
        return {"ms": None}
    engine, weight = ours.engine, next(unet.parameters())
    a = engine.architecture

    def zeros(*shape):
        return torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    context = zeros(2, 77, a.context_dim)
    more = {"y": zeros(2, a.adm_channels)} if a.adm_channels else {}

    def run(_, inputs, residuals):
        engine.compiled.keys_and_values(inputs[2])
        return inputs[0]

    engine._run = run
    ours.witness.is_due = lambda *_: False  # what is not computed differs from the WebUI's
    times = []
    try:
        for i in range(calls):
            # a new size in every call, so that no CUDA graph is recorded
            x, timesteps = zeros(2, a.in_channels, 8, 8 + i), zeros(2)
            began = time.perf_counter()
            unet(x, timesteps, context=context, **more)
            times.append((time.perf_counter() - began) * 1000)
    finally:
        del engine._run, ours.witness.is_due
    return {"ms": statistics.median(times)}


def _add_route(_, app):
    app.add_api_route("/accel-cost/overhead", overhead, methods=["GET"])


script_callbacks.on_app_started(_add_route)
'''
"""An extension that runs in the WebUI beside ours."""


@dataclass(frozen=True)
class Plan:
    """What to measure: `pictures` with each setting. `store` is the folder of artifacts."""

    webui: Path
    python: Path
    checkpoint: Path
    extension: Path
    store: Path
    flags: Sequence[str] = ()
    pictures: int = 50


def measure(plan: Plan, say: Callable[[str], object] = lambda text: None) -> dict[str, Any]:
    """Start both WebUIs and measure; return the result, ready for JSON. Raises WebUIFailed.

    They run extensions from the temporary folder. Raises ArtifactRejected where others could
    exchange those.
    """
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="accel-cost-", dir=temporary_folder())
        folder = Path(stack.enter_context(made))
        _write_loras(plan.checkpoint, folder / "lora")
        probe = folder / "probe"
        (probe / "scripts").mkdir(parents=True)
        (probe / "scripts" / "accel_cost.py").write_text(PROBE, encoding="utf-8")

        def start(name: str, extensions: dict[str, Path], *flags: object) -> WebUI:
            say(f"starting the WebUI {name} the extension ...")
            every = [*plan.flags, "--lora-dir", folder / "lora", *flags]
            arguments = (plan.webui, folder / name, plan.python, plan.checkpoint, every)
            return stack.enter_context(running(*arguments, extensions))

        without = start("without", {})
        with_ours = start(
            "with", {"accel": plan.extension, "probe": probe}, "--accel-store", plan.store
        )
        startup = _startup(without, with_ours)
        status = with_ours.settled(lambda: say("waiting for the compiler ..."))
        say("making pictures with the extension switched off, and without it ...")
        off = _switched_off(without, with_ours, plan.pictures)
        say("making pictures with acceleration and LoRAs, and without it ...")
        with_ours.post("/sdapi/v1/options", {"accel_enable": True})
        with_ours.picture(**PICTURE)
        return {
            "webui": str(plan.webui),
            "checkpoint": plan.checkpoint.name,
            "pictures": plan.pictures,
            **{key: status[key] for key in ("state", "backend", "reason")},
            "startup_s": startup,
            "off_ms": off,
            "step_ms": with_ours.get("/accel-cost/overhead")["ms"],
            "lora_change_s": {
                "without": _lora_changes(without),
                "with": _lora_changes(with_ours),
            },
        }


def _write_loras(checkpoint: Path, folder: Path) -> None:
    """Write two LoRAs of rank 32 in float16 that fit the checkpoint."""
    folder.mkdir()
    architecture = open_checkpoint(checkpoint).architecture()
    for name, seed in (("cost1", 1), ("cost2", 2)):
        deltas = {
            key: replace(d, up=d.up.half(), down=d.down.half())
            for key, d in random_deltas(architecture, 32, seed).items()
        }
        save_lora(folder / f"{name}.safetensors", architecture, deltas)


def _startup(without: WebUI, with_ours: WebUI) -> dict[str, float]:
    """Seconds that the WebUI itself reports, in all and of the extension's script."""
    plain, ours = (webui.get("/internal/profile-startup") for webui in (without, with_ours))
    scripts = [s for name, s in ours["records"].items() if name.endswith("/accel.py")]
    return {
        "without": plain["total"],
        "with": ours["total"],
        "extension": max(scripts, default=0.0),
    }


def _switched_off(without: WebUI, with_ours: WebUI, pictures: int) -> dict[str, float]:
    """Return the median milliseconds of a picture, and the extra time with ours switched off.

    `noise` is what the WebUI without the extension takes more in its second picture of a round.
    """
    with_ours.post("/sdapi/v1/options", {"accel_enable": False})
    for webui in (without, with_ours):
        for _ in range(WARM_UP_PICTURES):
            webui.picture(**PICTURE)
    rounds = [
        [webui.picture(**PICTURE) for webui in (without, with_ours, without)]
        for _ in range(pictures)
    ]
    return {
        "without": 1000 * statistics.median(r[0] for r in rounds),
        "off": 1000 * statistics.median(r[1] for r in rounds),
        "more": 1000 * statistics.median(r[1] - (r[0] + r[2]) / 2 for r in rounds),
        "noise": 1000 * statistics.median(r[2] - r[0] for r in rounds),
    }


CHANGES = {
    "first": "<lora:cost1:1>",
    "another": "<lora:cost2:1>",
    "strength alone": "<lora:cost2:0.5>",
    "two": "<lora:cost1:0.5><lora:cost2:1>",
    "none": "",
}


def _lora_changes(webui: WebUI) -> dict[str, float]:
    """Median seconds that the first picture after a change takes more than the second."""
    seconds: dict[str, list[float]] = {name: [] for name in CHANGES}
    for _ in range(ROUNDS_OF_CHANGES):
        for name, tags in CHANGES.items():
            payload = PICTURE | {"prompt": f"a photo of a cat {tags}"}
            first, second = (webui.picture(**payload) for _ in range(2))
            seconds[name].append(first - second)
    return {name: statistics.median(s) for name, s in seconds.items()}


def as_text(r: dict[str, Any]) -> str:
    """Return a result of `measure` in words."""
    startup, off, loras = r["startup_s"], r["off_ms"], r["lora_change_s"]
    reason = f": {r['reason']}" if r["reason"] else ""
    step = "not accelerated" if r["step_ms"] is None else f"{r['step_ms']:.2f} ms a step"
    lines = [
        f"{r['checkpoint']} in {r['webui']}; {r['state']}, backend {r['backend']}{reason}",
        f"start-up: {startup['extension']:.2f} s, of {startup['with']:.1f} s in all; "
        f"without the extension {startup['without']:.1f} s",
        f"switched on: {step}, besides computing",
        f"switched off: {off['more']:.1f} ms a picture (median of {r['pictures']}); a picture "
        f"takes {off['off']:.1f} ms, without the extension {off['without']:.1f} ms, where two in "
        f"a row differ by {off['noise']:.1f} ms",
        "",
        f"| seconds more after a change of LoRAs | {' | '.join(CHANGES)} |",
        "| --- " * (1 + len(CHANGES)) + "|",
    ]
    for name in ("without", "with"):
        cells = " | ".join(f"{loras[name][change]:.2f}" for change in CHANGES)
        lines.append(f"| {name} the extension | {cells} |")
    return "\n".join(lines)
