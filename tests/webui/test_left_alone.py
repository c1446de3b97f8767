"""What is not accelerated: the WebUI's own picture to the bit, and the status says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Launch, rows
from .host import DEFAULTS, Server
from .pictures import MIN_DB


def _check_left_alone(server: Server, name: str, word: str) -> None:
    c = server.compare()
    rows.append(f"{name:32} {c.decibels:5.1f} dB  {c.status['state']}: {c.status['reason']}")
    assert c.on.same(c.off)
    assert (c.calls, c.compiles, c.on.served) == (0, 0, False)
    assert word in c.status["reason"], c.status


def test_lowvram_gives_a_reason(launch: Launch) -> None:
    """On a CPU it leaves hooks on the blocks. On a GPU the weights are on another device."""
    server = launch("--lowvram")
    c = server.compare()
    rows.append(f"{'lowvram':32} {c.decibels:5.1f} dB  {c.status['state']}: {c.status['reason']}")
    assert c.decibels >= MIN_DB
    assert c.status["reason"]
    server.stop()


def test_sd3_is_left_alone(server: Server, webui: Path) -> None:
    if not (webui / "models" / "Stable-diffusion" / "tinySD3.safetensors").exists():
        pytest.skip("there is no checkpoint tinySD3")
    server.options(**DEFAULTS)
    server.use("tinyA")
    plain = server.make()
    # previews would download a model
    server.options(sd_model_checkpoint="tinySD3", live_previews_enable=False)
    _check_left_alone(server, "SD3", "SD3")
    server.options(live_previews_enable=True)
    server.use("tinyA")
    assert server.make().same(plain)


def test_fp8_storage_is_left_alone(server: Server) -> None:
    server.options(**DEFAULTS)
    server.use("tinyA")
    server.options(fp8_storage="Enable")
    try:
        _check_left_alone(server, "fp8 storage", "float8")
    finally:
        server.options(fp8_storage="Disable")
    server.wait_ready()
    # the WebUI does not repeat itself to the bit while it keeps this model: this test is the last
    c = server.compare()
    assert c.decibels >= MIN_DB
    assert c.on.served
