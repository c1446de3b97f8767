"""Random changes one after another on one server, and after each the same picture off and on.

ACCEL_E2E_WALK: how many actions (default 300). ACCEL_E2E_SEED: which walk (default 1). The same two numbers give the same walk.
With ACCEL_CONTROLNET (the folder of sd-webui-controlnet) control units come and go as well: those that fit a UNet of any width.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..control_files import t2i_adapter
from ..network_files import KINDS, shapes_of
from .conftest import Launch, rows
from .host import DEFAULTS, MIN_DB, Pictures, Refused, Server, picture

LENGTH = int(os.environ.get("ACCEL_E2E_WALK", "300"))
SEED = int(os.environ.get("ACCEL_E2E_SEED", "1"))
CONTROLNET = os.environ.get("ACCEL_CONTROLNET")
NETWORKS = [
    "loraA",
    "loraB",
    *(k for k in KINDS if k != "full-bias"),
]  # with that one the WebUI alone fails
HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": "Latent"}


@dataclass
class State:
    """What the walk has set so far; every picture is made with all of it."""

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


def _both(
    r: random.Random, s: State, server: Server
) -> tuple[Pictures | Refused, Pictures | Refused]:
    """The picture off and on, either first; off for all, or for this one request while the UNet stays taken over."""
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


def test_random_walk(launch: Launch, webui: Path, folder: Path) -> None:
    if CONTROLNET:
        (folder / "walk").mkdir()
        adapter = t2i_adapter(
            shapes_of(webui / "models" / "Stable-diffusion" / "tinyA.safetensors"), 1
        )
        save_file(adapter, folder / "walk" / "t2iadapter_tiny.safetensors")
        server = launch(
            "--controlnet-dir", str(folder / "walk"), others=[Path(CONTROLNET).resolve()]
        )
        server.names = {
            n.split(" [")[0]: n
            for n in server.get("/controlnet/model_list?update=true")["model_list"]
        }
    else:
        server = launch()
    server.options(
        **DEFAULTS | {"hypertile_max_tile_unet": 64}
    )  # small enough to act at 128 pixels
    server.wait_ready()
    r, state = random.Random(SEED), State()
    done: list[str] = []
    wrong: list[str] = []
    unsteady: list[str] = []
    refused: list[str] = []
    served, memory = 0, [server.memory()]
    compiles = server.status()["counters"]["compiles"]
    for i in range(LENGTH):
        if (
            r.random() < 0.3
        ):  # what makes pictures slow, or keeps compiled code out, does not stay for long
            state.hires.clear()
            state.refiner.clear()
            state.control.clear()
            state.settings.update(lora_functional=False, token_merging_ratio=0.0)
            server.options(lora_functional=False, token_merging_ratio=0.0)
        name = r.choice(list(ACTIONS))
        done.append(f"{i}: {name}: {ACTIONS[name](r, state, server)}")
        off, on = _both(r, state, server)
        if isinstance(off, Refused) or isinstance(
            on, Refused
        ):  # such as a latent upscaler with an inpainting model: alike is right
            (refused if str(off) == str(on) else wrong).append(f"{done[-1]}: off: {off}, on: {on}")
            continue
        served += on.served
        if (
            off.decibels(on) < MIN_DB
        ):  # the WebUI's own state may have changed in between: is it of one mind by now?
            again, second = _both(r, state, server)
            assert isinstance(again, Pictures), again
            assert isinstance(second, Pictures), second
            if min(again.decibels(second), max(again.decibels(on), second.decibels(off))) >= MIN_DB:
                unsteady.append(f"{done[-1]}: {off.decibels(again):.1f} dB off against off")
                on = off
        if off.decibels(on) < MIN_DB or off.served:
            wrong.append(
                f"{done[-1]}: {off.decibels(on):.1f} dB, off served {off.served}; {json.dumps(state.body())} {state.settings}"
            )
        memory.append(server.memory())
        print(
            done[-1],
            f"{off.decibels(on):.1f} dB, served {on.served}, {memory[-1]:.0f} MB",
            flush=True,
        )
    compiled = server.status()["counters"]["compiles"] - compiles
    third = max(1, len(memory) // 3)
    peaks = [
        max(memory[k : k + third]) for k in range(0, 3 * third, third) if memory[k : k + third]
    ]
    told = (
        f"random walk, seed {SEED}: {LENGTH} actions, {len(wrong)} wrong, {served} served by compiled code, {compiled} compiles, "
        f"{len(refused)} refused by the WebUI off as on, {len(unsteady)} where the WebUI did not repeat itself {unsteady}; "
        f"MB at start, middle, end: {memory[0]:.0f}, {memory[len(memory) // 2]:.0f}, {memory[-1]:.0f}, peaks by third {peaks}"
    )
    rows.append(told)
    server.stop()
    assert not wrong, "\n".join([told, *wrong, "all actions:", *done])
    assert compiled == 0
    assert len(unsteady) <= LENGTH / 30
    assert len(refused) <= LENGTH / 20, refused
    assert served > LENGTH / 3
    assert peaks[-1] < peaks[0] * 1.15 + 200, told
