"""The actions of tests/webui/test_random_walk.py, and the state they change."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lib_accel.tools.webui.client import Refused

from ..network_files import KINDS
from .host import DEFAULTS, Server
from .pictures import Pictures, picture

CONTROLNET = os.environ.get("ACCEL_CONTROLNET")
# with full-bias the WebUI alone fails
NETWORKS = ["loraA", "loraB", *(k for k in KINDS if k != "full-bias")]
HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": "Latent"}


@dataclass
class State:
    """What the walk has set so far. Every picture is made with all of it."""

    model: str = "tinyA"
    prompt: str = "a photo of a cat"
    loras: str = ""
    payload: dict[str, Any] = field(default_factory=dict)
    hires: dict[str, Any] = field(default_factory=dict)
    refiner: dict[str, Any] = field(default_factory=dict)
    control: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS))

    def body(self) -> dict[str, Any]:
        scripts = (
            {"alwayson_scripts": {"controlnet": {"args": self.control}}} if self.control else {}
        )
        return {
            "prompt": f"{self.prompt} {self.loras}".strip(),
            **self.payload,
            **self.hires,
            **self.refiner,
            **scripts,
        }


Action = Callable[[random.Random, State, Server], str]


def _setting(name: str, *values: Any) -> Action:
    def act(r: random.Random, s: State, server: Server) -> str:
        value = s.settings[name] = r.choice(values)
        server.options(**{name: value})
        return f"{name}={value}"

    return act


def _payload(where: str, *choices: dict[str, Any]) -> Action:
    def act(r: random.Random, s: State, _: Server) -> str:
        choice = r.choice(choices)
        getattr(s, where).update(choice) if choice else getattr(s, where).clear()
        return f"{where} {choice}"

    return act


def _checkpoint(r: random.Random, s: State, server: Server) -> str:
    s.model = r.choice(["tinyA", "same.safetensors", "same.ckpt", "tinyB", "tinyInpaint"])
    server.options(sd_model_checkpoint=s.model)
    return s.model


def _loras(r: random.Random, s: State, _: Server) -> str:
    names = r.sample(NETWORKS, r.choice([0, 1, 1, 2]))
    s.loras = " ".join(f"<lora:{n}:{r.choice([-0.5, 0.3, 0.7, 1])}>" for n in names)
    return s.loras or "no LoRA"


def _control(r: random.Random, s: State, server: Server) -> str:
    adapter = {
        "model": server.names.get("t2iadapter_tiny"),
        "module": "canny",
        "weight": r.choice([0.5, 1]),
    }
    reference = {"model": "None", "module": r.choice(["reference_only", "reference_adain+attn"])}
    units = r.choice([[], [], [adapter], [reference], [adapter, reference]])
    s.control = [{"enabled": True, "image": picture(), **u} for u in units]
    return f"control {[u['module'] for u in units]}"


def _prompt(r: random.Random, s: State, _: Server) -> str:
    s.prompt = r.choice(
        [
            "a photo of a cat",
            "a cat AND a dog",
            "a [cat:dog:0.5]",
            "a cat, " + "very detailed, " * 40,
            "a cat BREAK a dog",
        ]
    )
    return s.prompt[:20]


def _toggle(_: random.Random, __: State, server: Server) -> str:
    enabled = server.get("/sdapi/v1/options")["accel_enable"]
    server.options(accel_enable=not enabled)
    return f"accel_enable={not enabled}"


def _unload(r: random.Random, _: State, server: Server) -> str:
    server.post("/sdapi/v1/unload-checkpoint")
    if r.random() < 0.7:
        server.post("/sdapi/v1/reload-checkpoint")
        return "unload, reload"
    return "unload"


ACTIONS: dict[str, Action] = {
    "checkpoint": _checkpoint,
    "vae": _setting("sd_vae", "Automatic", "tinyVAE.safetensors", "None"),
    "loras": _loras,
    "loras again": _loras,
    "prompt": _prompt,
    "size": _payload(
        "payload",
        {"width": 128, "height": 128},
        {"width": 192, "height": 128},
        {"width": 136, "height": 152},
    ),
    "batch": _payload(
        "payload",
        {"batch_size": 1, "n_iter": 1},
        {"batch_size": 2, "n_iter": 1},
        {"batch_size": 1, "n_iter": 2},
    ),
    # not UniPC: it refuses the few steps of a hires pass
    "sampler": _payload(
        "payload", *({"sampler_name": n} for n in ("Euler", "Euler a", "DPM++ 2M", "DDIM", "Heun"))
    ),
    "toggle": _toggle,
    "token merging": _setting("token_merging_ratio", 0.0, 0.5),
    "hypertile": _setting("hypertile_enable_unet", False, True),
    "lora_functional": _setting("lora_functional", False, True),
    "clip skip": _setting("CLIP_stop_at_last_layers", 1, 2),
    "kept in memory": _setting("sd_checkpoints_limit", 1, 2),
    "hires": _payload(
        "hires",
        {},
        HIRES,
        {**HIRES, "hr_prompt": "a dog <lora:loraA:0.5>"},
        {**HIRES, "hr_checkpoint_name": "same.ckpt"},
    ),
    "refiner": _payload(
        "refiner",
        {},
        *({"refiner_checkpoint": m, "refiner_switch_at": 0.5} for m in ("tinyB", "same.ckpt")),
    ),
    "unload": _unload,
}


if CONTROLNET:
    ACTIONS["control"] = _control


def both(
    r: random.Random, s: State, server: Server
) -> tuple[Pictures | Refused, Pictures | Refused]:
    """Make the picture off and on, in random order.

    Off is a setting, or it is for this request alone while the UNet stays accelerated.
    """
    body = s.body()

    def make(**more: Any) -> Pictures | Refused:
        try:
            return server.make(**body, **more)
        except Refused as e:
            return e

    def off() -> Pictures | Refused:
        if one_request:
            return make(override_settings={"accel_enable": False})
        server.options(accel_enable=False)
        return make()

    def on() -> Pictures | Refused:
        server.options(accel_enable=True)
        return make()

    one_request = r.random() < 0.5
    if r.random() < 0.5:
        first = off()
        return first, on()
    second = on()
    return off(), second
