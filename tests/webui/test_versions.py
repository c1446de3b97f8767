"""Each WebUI that ACCEL_WEBUI names makes the same pictures off and on: the small acceptance set.

`ACCEL_WEBUI` is one folder or several, separated as in PATH. All other tests here use the first.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import folders, rows, served, store_of
from .host import KINDS_OF_MODEL, Server

HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": "Latent"}
CASES = {
    "plain": {},
    "wide": {"width": 192},
    "odd": {"width": 136, "height": 200},
    "batch size 3": {"batch_size": 3},
    "long prompt": {"prompt": "a cat, " + "very detailed, " * 60},
    "unequal prompts": {"prompt": "a cat", "negative_prompt": "blurry, " * 60},
    "hires": HIRES,
    "LoRA": {"prompt": "a cat <lora:loraA:1>"},
    "LoRA, half as strong": {"prompt": "a cat <lora:loraA:0.5>"},
    "after the LoRA": {},
    "two LoRAs": {"prompt": "a cat <lora:loraA:0.7> <lora:loraB:-0.5>"},
    "after both": {},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the servers' data, with the two LoRAs."""
    place = tmp_path_factory.mktemp("versions")
    for kind in KINDS_OF_MODEL:
        (place / kind).mkdir()
    for name in ("loraA", "loraB"):
        lora = folders()[0] / "models" / "Lora" / f"{name}.safetensors"
        (place / "lora" / lora.name).symlink_to(lora)
    return place


@pytest.mark.parametrize("host", folders(), ids=lambda folder: folder.name)
def test_the_same_pictures_in_each_webui(host: Path, place: Path) -> None:
    data = place / f"data{folders().index(host)}"
    extension = {"accel": Path(__file__).parents[2]}
    server = Server(host, data, store_of(place), "tinyA", extensions=extension)
    try:
        server.wait_ready()
        made = {name: served(server, name, **payload) for name, payload in CASES.items()}
        version = made["plain"].on.infotexts[0].rpartition("Version: ")[2]
        rows.append(f"{version} ({host}): {len(made)} of {len(CASES)}")
        assert not any(c.off.served for c in made.values())
        plain = made["plain"].on
        assert plain.same(made["after the LoRA"].on)
        assert plain.same(made["after both"].on)
        assert made["LoRA"].on.decibels(plain) < 45
    finally:
        server.stop()
