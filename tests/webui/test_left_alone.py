"""What we do not accelerate: made the WebUI's way, to the bit, with the reason shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Launch, rows
from .host import DEFAULTS, MIN_DB, Server


def left_alone(server: Server, name: str, word: str) -> None:
    c = server.compare()
    rows.append(f"{name:32} {c.decibels:5.1f} dB  {c.status['state']}: {c.status['reason']}")
    assert c.on.same(c.off)
    assert (c.calls, c.compiles, c.on.served) == (0, 0, False)
    assert word in c.status["reason"], c.status


def test_lowvram(launch: Launch) -> None:
    """Here, where both places are the CPU, what it leaves on the UNet are hooks on the blocks; on a GPU the weights are elsewhere."""
    server = launch("--lowvram")
    c = server.compare()
    rows.append(f"{'lowvram':32} {c.decibels:5.1f} dB  {c.status['state']}: {c.status['reason']}")
    assert c.decibels >= MIN_DB
    assert c.status["reason"]
    server.stop()


def test_sd3(server: Server, webui: Path) -> None:
    if not (webui / "models" / "Stable-diffusion" / "tinySD3.safetensors").exists():
        pytest.skip("there is no checkpoint tinySD3")
    server.options(**DEFAULTS)
    server.use("tinyA")
    plain = server.make()
    server.options(
        sd_model_checkpoint="tinySD3", live_previews_enable=False
    )  # what previews need would be downloaded
    left_alone(server, "SD3", "SD3")
    server.options(live_previews_enable=True)
    server.use("tinyA")
    assert server.make().same(plain)


def test_fp8_storage(server: Server) -> None:
    server.options(**DEFAULTS)
    server.use("tinyA")
    server.options(fp8_storage="Enable")
    try:
        left_alone(server, "fp8 storage", "float8")
    finally:
        server.options(fp8_storage="Disable")
    server.wait_ready()
    c = server.compare()  # the WebUI itself does not come back to the bit, for as long as it keeps the object: so this test is the last
    assert c.decibels >= MIN_DB
    assert c.on.served
