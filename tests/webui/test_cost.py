"""What the extension costs besides computing: reported, with no bound, because other work on the machine would break one.

ACCEL_E2E_COST names the checkpoint; one of the real size tells most (LoRAs `lora` and `loha` of tests/network_files.py fit only tinyA).
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ..network_files import network, shapes_of
from .conftest import HERE, Launch, rows
from .host import DEFAULTS

MODEL = os.environ.get("ACCEL_E2E_COST")


@pytest.mark.skipif(not MODEL, reason="NOT RUN: set ACCEL_E2E_COST to the name of a checkpoint")
def test_cost(launch: Launch, webui: Path, folder: Path) -> None:
    assert MODEL
    shapes = shapes_of(webui / "models" / "Stable-diffusion" / f"{MODEL}.safetensors")
    for name, seed in (("cost1", 1), ("cost2", 2)):
        save_file({k: t.half() for k, t in network("lora", shapes, seed, rank=32).items()}, folder / "lora" / f"{name}.safetensors")
    server = launch(model=MODEL, others=[HERE / "probe"])
    server.options(**DEFAULTS)
    server.wait_ready()
    records = server.get("/internal/profile-startup")["records"]
    rows.append("start-up, s: " + ", ".join(f"{k} {v:.2f}" for k, v in records.items() if "accel.py" in k or k == "total"))
    rows.append("overhead of a UNet call, ms: " + ", ".join(f"{k} {v:.3f}" for k, v in server.get("/accel-probe/overhead").items()))
    server.make(steps=1)
    for who in ("host", "ours"):
        times = []
        for names, strengths in (("cost1", "1"), ("cost2", "1"), ("cost2", "0.5"), ("cost1,cost2", "0.5,1"), ("", "")):
            t = server.get(f"/accel-probe/seconds?names={names}&strengths={strengths}&host={who == 'host'}")["seconds"]
            times.append(f"{names or 'none'}:{strengths} {t:.2f}")
        rows.append(f"LoRA set changed, s, {who}: {'; '.join(times)}")
        server.post("/sdapi/v1/unload-checkpoint")  # backups go with the weights
        server.post("/sdapi/v1/reload-checkpoint")
    untouched = launch(model=MODEL, extension=False)
    server.options(accel_enable=False)
    times = {"with the extension, off": [], "without it": []}
    for _ in range(5):
        times["with the extension, off"].append(server.make(steps=4).seconds)
        times["without it"].append(untouched.make(steps=4).seconds)
    rows.append("a picture, s: " + "; ".join(f"{k} {statistics.median(v):.2f} ({min(v):.2f} - {max(v):.2f})" for k, v in times.items()))
