"""Other people's extensions, unchanged: what each does to the UNet is noticed; same pictures.

ACCEL_EXTENSIONS names a folder with clones of ljleb/sd-webui-freeu (replaces how skips are joined),
cheald/sd-webui-loractl (LoRA strength by step), aria1th/sd-webui-deepcache-standalone (drives the
blocks and skips some), hako-mikan/sd-webui-negpip (replaces attention).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .conftest import Launch, rows
from .host import DEFAULTS
from .pictures import MIN_DB

FOLDER = os.environ.get("ACCEL_EXTENSIONS")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="NOT RUN: set ACCEL_EXTENSIONS to a folder of extensions"
)
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
STAGE = {"backbone_factor": 1.4, "skip_factor": 0.5}


def scripted(name: str, *args: Any) -> dict[str, Any]:
    return {"alwayson_scripts": {name: {"args": list(args)}}}


@dataclass(frozen=True)
class Case:
    name: str
    extension: str
    payload: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    reason: str = ""  # a part of it
    model: str = "tinyA"


CASES = [
    Case(
        "LoRA strength by step",
        "sd-webui-loractl",
        {"prompt": "a photo of a cat <lora:loraA:1@0,0@0.6>", "steps": 6},
    ),
    Case(
        "LoRA strength, hires",
        "sd-webui-loractl",
        {"prompt": "a cat <lora:loraA:hr=0.5@0,1@1>", **HIRES},
    ),
    Case(
        "blocks skipped",
        "sd-webui-deepcache-standalone",
        {"steps": 6},
        {
            "deepcache_enable_pass": "both passes",
            "deepcache_cache_enable_step_percentage": 0.0,
            "deepcache_full_run_step_rate": 3,
        },
        "drives the UNet",
    ),
    Case(
        "negative words",
        "sd-webui-negpip",
        {"prompt": "a photo of a cat, (red:-1.2)", **scripted("NegPiP", True)},
        reason="forward of a CrossAttention",
    ),
    Case(
        "skips filtered",
        "sd-webui-freeu",
        scripted(
            "FreeU",
            {
                "enable": True,
                "start_ratio": 0.0,
                "stop_ratio": 1.0,
                "transition_smoothness": 0.0,
                "version": "2",
                "stage_infos": [STAGE] * 3,
            },
        ),
        reason="joins",
        model=os.environ.get("ACCEL_CONTROLNET_MODEL", "real15"),
    ),
]


@pytest.mark.parametrize("extension", sorted({c.extension for c in CASES}))
def test_off_against_on(launch: Launch, extension: str) -> None:
    assert FOLDER
    cases = [c for c in CASES if c.extension == extension]
    server = launch(model=cases[0].model, others=[Path(FOLDER).resolve() / extension])
    server.options(**DEFAULTS)
    server.wait_ready()
    plain = server.make()
    for case in cases:
        before = {
            name: value
            for name, value in server.get("/sdapi/v1/options").items()
            if name in case.settings
        }
        server.options(**case.settings)
        c = server.compare(**case.payload)
        server.options(**before)
        rows.append(f"{extension:30} {case.name:22} {c.line}")
        assert c.decibels >= MIN_DB, rows[-1]
        assert (c.calls > 0, c.host_calls, c.compiles) == (True, 0, 0), rows[-1]
        assert case.reason in c.reason, rows[-1]
        assert (
            c.off.decibels(
                server.make(**{k: v for k, v in case.payload.items() if k in ("steps",)})
            )
            < 50
        ), "it changed nothing"
    assert server.make().same(plain), "the extension left something"
    server.stop()
