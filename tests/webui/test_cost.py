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
        save_file(
            {k: t.half() for k, t in network("lora", shapes, seed, rank=32).items()},
            folder / "lora" / f"{name}.safetensors",
        )
    server = launch(model=MODEL, others=[HERE / "probe"])
    server.options(**DEFAULTS)
    server.wait_ready()
    records = server.get("/internal/profile-startup")["records"]
    rows.append(
        "start-up, s: "
        + ", ".join(f"{k} {v:.2f}" for k, v in records.items() if "accel.py" in k or k == "total")
    )
    rows.append(
        "overhead of a UNet call, ms: "
        + ", ".join(f"{k} {v:.3f}" for k, v in server.get("/accel-probe/overhead").items())
    )
    server.make(steps=1)
    for who in ("host", "ours"):
        times = []
        for names, strengths in (
            ("cost1", "1"),
            ("cost2", "1"),
            ("cost2", "0.5"),
            ("cost1,cost2", "0.5,1"),
            ("", ""),
        ):
            t = server.get(
                f"/accel-probe/seconds?names={names}&strengths={strengths}&host={who == 'host'}"
            )
            times.append(f"{names or 'none'}:{strengths} {t['read']:.2f} + {t['merged']:.2f}")
        rows.append(f"LoRA set changed, files read + merged, s, {who}: {'; '.join(times)}")
        server.post("/sdapi/v1/unload-checkpoint")  # backups go with the weights
        server.post("/sdapi/v1/reload-checkpoint")
    server.stop()


@pytest.mark.skipif(not MODEL, reason="NOT RUN: set ACCEL_E2E_COST to the name of a checkpoint")
def test_off(launch: Launch) -> None:
    """On the smallest picture, whose own time is least: what stands beside it there is the extension's in every picture."""
    servers = {
        "off": launch(),
        "without it": launch(extension=False),
        "without it again": launch(extension=False),
    }
    servers["off"].options(accel_enable=False)
    times: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(100):
        for name, server in servers.items():
            times[name].append(
                server.make(steps=1, width=64, height=64, cfg_scale=1).seconds * 1000
            )
    rows.append(
        "the smallest picture, ms: "
        + "; ".join(f"{k} {statistics.median(v):.1f}" for k, v in times.items())
    )
    for name in ("off", "without it again"):
        more = [a - b for a, b in zip(times[name], times["without it"], strict=True)]
        rows.append(
            f"of {len(more)} pairs, {name} takes {statistics.median(more):.2f} ms more than without it"
        )
