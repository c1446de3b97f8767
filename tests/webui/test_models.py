"""What happens to a model between pictures, and interrupted ones: weights stay right."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import rows, served
from .host import DEFAULTS, Server
from .pictures import MIN_DB, Pictures


@pytest.fixture(scope="module")
def _fresh(server: Server) -> None:
    server.use("tinyB")  # HyperTile's hooks stay until other objects are loaded


@pytest.fixture(autouse=True)
def _defaults(server: Server, _fresh: None) -> None:
    server.options(**DEFAULTS)
    server.use("tinyA")


@pytest.mark.parametrize("model", ["tinyB", "same.ckpt"])
def test_switch_there_and_back(server: Server, model: str) -> None:
    """To other objects or, with one configuration file, to other weights in the same."""
    server.use("same.safetensors")
    first = server.make()
    server.use(model)
    other = served(server, f"switched to {model}").on
    server.use("same.safetensors")
    assert server.make().same(first)
    assert not other.same(first)


def test_several_checkpoints_in_memory(server: Server) -> None:
    """The WebUI calls no callback for one that it uses again."""
    first = server.make()
    server.options(sd_checkpoints_limit=2)
    binds = []
    for model in ("tinyB", "tinyA", "tinyB", "tinyA"):
        server.use(model)
        picture = served(server, f"kept in memory: {model}").on
        assert picture.same(first) == (model == "tinyA")
        binds.append(server.status()["counters"]["binds"])
    server.options(accel_enable=False)
    server.use("tinyB")
    server.options(accel_enable=False, sd_model_checkpoint="tinyA")
    assert not server.make().served
    server.options(sd_checkpoints_limit=1)


def test_an_inpainting_checkpoint_shares_the_code(server: Server) -> None:
    before = server.status()
    after = server.use("tinyInpaint")
    assert after["artifact"]["key"] == before["artifact"]["key"]
    assert after["counters"]["compiles"] == before["counters"]["compiles"]


@pytest.mark.parametrize("model", ["tinyB", "same.ckpt"])
def test_switch_with_a_lora_in_place(server: Server, model: str) -> None:
    server.use("same.safetensors")
    first = server.make()
    prompt = "a photo of a cat <lora:loraA:1>"
    server.make(prompt=prompt)
    server.use(model)
    served(server, "B under the LoRA of A", prompt=prompt)
    server.use("same.safetensors")
    served(server, "A under the LoRA again", prompt=prompt)
    assert server.make().same(first)


@pytest.mark.parametrize("lora", [False, True])
def test_unload_and_reload(server: Server, lora: bool) -> None:
    prompt = "a photo of a cat" + " <lora:loraA:1>" * lora
    first = server.make(prompt=prompt)
    server.post("/sdapi/v1/unload-checkpoint")
    assert server.status()["state"] in ("ready", "fallback")
    server.post("/sdapi/v1/reload-checkpoint")
    again = server.make(prompt=prompt)
    assert again.same(first)
    assert again.served
    served(server, "unloaded and reloaded", prompt=prompt)


def test_an_image_right_after_unloading(server: Server) -> None:
    first = server.make()
    server.post("/sdapi/v1/unload-checkpoint")
    assert server.make().same(first)


def test_vae_there_and_back(server: Server) -> None:
    first = server.make()
    server.options(sd_vae="tinyVAE.safetensors")
    assert not served(server, "another VAE").on.same(first)
    server.options(sd_vae="None")
    assert served(server, "its own VAE").on.same(first)


def test_loras_leave_nothing_behind(server: Server) -> None:
    first = server.make()
    for prompt in ("<lora:loraA:1>", "<lora:loraA:0.3> <lora:loraB:1>", "<lora:loraB:-0.5>"):
        assert not server.make(prompt=f"a photo of a cat {prompt}").same(first)
    assert server.make().same(first)
    server.make(prompt="a photo of a cat <lora:loraA:1>")
    server.options(accel_enable=False)  # the WebUI takes the LoRAs out
    off = server.make()
    server.make(prompt="a photo of a cat <lora:loraA:1>")
    server.options(accel_enable=True)  # we take the LoRA out
    assert server.make().same(first)
    assert off.decibels(first) >= MIN_DB


def test_off_and_on_take_effect_at_the_next_image(server: Server) -> None:
    on = server.make()
    server.options(accel_enable=False)
    assert server.status()["state"] == "off"
    off = server.make()
    server.options(accel_enable=True)
    assert (on.served, off.served) == (True, False)
    assert server.make().same(on)


def test_xyz_plot(server: Server) -> None:
    axes = next(
        s
        for s in server.get("/sdapi/v1/script-info")
        if s["name"] == "x/y/z plot" and not s["is_img2img"]
    )["args"][0]["choices"]
    for x, xs, y, ys in (
        ("Checkpoint name", "tinyA, tinyB", "Size", "128x128, 192x128"),
        ("Prompt S/R", "<lora:loraA:0>, <lora:loraA:1>, <lora:loraB:1>", "Seed", "1,2"),
        ("Token merging ratio", "0, 0.5", "Clip skip", "1,2"),
    ):
        arguments = [
            axes.index(x),
            xs,
            [],
            axes.index(y),
            ys,
            [],
            0,
            "",
            [],
            True,
            True,
            False,
            False,
            False,
            False,
            False,
            0,
            True,
        ]
        payload = {
            "script_name": "x/y/z plot",
            "script_args": arguments,
            "prompt": "a photo of a cat <lora:loraA:0>",
        }
        c = server.compare(**payload)
        rows.append(f"X/Y/Z {x} / {y}: {len(c.on.pixels)} pictures  {c.line}")
        assert len(c.on.pixels) > 4
        assert c.decibels >= MIN_DB, rows[-1]
        assert (c.calls > 0, c.host_calls, c.compiles) == (True, 0, 0)
        assert len({p.tobytes() for p in c.on.pixels[1:]}) == len(c.on.pixels) - 1, (
            "an axis had no effect"
        )


def _disturbed(server: Server, disturb: Callable[[], object], **payload: Any) -> Pictures:
    """Make pictures, and `disturb` after some steps."""
    made: list[Pictures] = []
    thread = threading.Thread(target=lambda: made.append(server.make(**payload)))
    thread.start()
    end = time.monotonic() + 120
    while server.get("/sdapi/v1/progress?skip_current_image=true")["state"]["sampling_step"] < 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    disturb()
    thread.join(120)
    return made[0]


def test_an_interrupted_picture_leaves_nothing(server: Server) -> None:
    first = server.make()
    made = _disturbed(server, lambda: server.post("/sdapi/v1/interrupt"), steps=150, n_iter=3)
    assert len(made.pixels) < 3
    assert server.make().same(first)
    served(server, "after an interrupt")


def test_a_skipped_picture_leaves_nothing(server: Server) -> None:
    payload = {"steps": 40, "n_iter": 2}
    whole = server.make(**payload)
    made = _disturbed(server, lambda: server.post("/sdapi/v1/skip"), **payload)
    assert made.pixels[-1].shape == whole.pixels[-1].shape
    assert (made.pixels[-1] == whole.pixels[-1]).all()
    served(server, "after a skip")


def test_an_interrupted_picture_with_loras_and_hires_leaves_nothing(server: Server) -> None:
    first = server.make()
    more = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    _disturbed(
        server,
        lambda: server.post("/sdapi/v1/interrupt"),
        prompt="a cat <lora:loraA:1>",
        steps=150,
        hr_prompt="a dog <lora:loraB:1>",
        **more,
    )
    assert server.make().same(first)


def test_an_option_changed_during_an_image_takes_effect_at_the_next(server: Server) -> None:
    """Weights must not move under a running image."""
    payload = {"steps": 40}
    whole, plain = server.make(**payload), server.make()
    for wanted in (False, True):
        made = _disturbed(
            server, lambda wanted=wanted: server.options(accel_enable=wanted), **payload
        )
        assert made.decibels(whole) >= MIN_DB
        assert server.make().served == wanted
    assert server.make().same(plain)
    made = _disturbed(server, lambda: server.post("/accel/v1/prebuild"), **payload)
    assert made.same(whole)
