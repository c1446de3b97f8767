"""The command `bench webui`, with a stand-in for the WebUI's API."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_accel.tools.webui import speed_table

from ..store.kit import posix
from .commands import Run, failure
from .webui_api import Api, running_api


@pytest.fixture
def api() -> Iterator[Api]:
    with running_api() as api:
        yield api


def measured(run: Run, api: Api, out: Path, *more: object) -> Any:
    size = ("--steps", 8, "--size", 64, "--rounds", 3, "--out", out)
    return run("bench", "webui", "--url", api.url, *size, *more)


def test_images_off_and_on_are_timed_and_compared(run: Run, api: Api, tmp_path: Path) -> None:
    status, out, _ = measured(run, api, tmp_path, "--lora", "style:0.8", "--json")
    assert status == 0
    result = json.loads(out)
    assert [found["loras"] for found in result["sets"]] == [0, 1, 10]
    for found in result["sets"]:
        values = found["seconds"]
        assert all(len(values[part][state]) == 3 for part in values for state in ("off", "on"))
        assert min(values["image_s"]["off"] + values["image_s"]["on"]) > 0
        assert found["marked"] == {"off": 0, "on": 9}
        assert 40 < found["decibels"] < 60  # one level in one of three colours
        assert values["vae_s"] == {"off": [1.0] * 3, "on": [0.5] * 3}
    assert (result["webui"], result["steps"], result["few_steps"]) == ("v1.10.1", 8, 2)
    assert (result["backend"], result["architecture"]) == ("aoti", "SD1")  # the last image was off
    assert api.options["accel_enable"] is True


def test_ten_loras_share_the_strength_of_those_that_are_named(
    run: Run, api: Api, tmp_path: Path
) -> None:
    measured(run, api, tmp_path, "--lora", "one:0.8", "--lora", "two", "--rounds", 1)
    prompts = {prompt for _, prompt, _ in api.prompts}
    ten = max(prompts, key=len)
    assert ten.count("<lora:one:0.16>") == ten.count("<lora:two:0.2>") == 5
    assert any(p.endswith(" <lora:one:0.8>") for p in prompts)


def test_a_lora_that_is_not_there_is_refused(run: Run, api: Api, tmp_path: Path) -> None:
    """The WebUI makes the image without it, so the figures would be those of no LoRA."""
    refused = failure(measured(run, api, tmp_path, "--lora", "style", "--lora", "nosuch:0.5"))
    assert refused.endswith("the WebUI has no LoRA 'nosuch'. It has: one, style, two")
    assert api.prompts == []
    api.missing = {"/sdapi/v1/loras"}
    assert "has no LoRAs" in failure(measured(run, api, tmp_path, "--lora", "style"))
    api.missing = set()
    assert measured(run, api, tmp_path, "--lora", "one 2", "--rounds", 1)[0] == 0


def test_times_that_are_lost_in_the_noise_are_not_printed(
    run: Run, api: Api, tmp_path: Path
) -> None:
    """A step's time is a difference of two images' times, which noise can make negative."""
    result = json.loads(measured(run, api, tmp_path, "--json")[1])
    values = result["sets"][0]["seconds"]
    values["step_s"]["on"] = [-0.38, 0.0074, 0.23]
    values["change_s"] = {"off": [0.1, 0.2, 0.3], "on": [-0.1, -0.1, -0.1]}
    rows = [line for line in speed_table.table(result).splitlines() if line.startswith("| ")]
    assert [row for row in rows if re.search(r"(?<!e)-\d", row)] == []
    change = next(row for row in rows if "first image after" in row)
    assert change == (
        "| more in the first image after a change | 0 | 0.2 s (0.1 to 0.3) | within the noise |  |"
    )


def test_a_table_a_picture_and_the_json_are_written(run: Run, api: Api, tmp_path: Path) -> None:
    _, out, _ = measured(run, api, tmp_path)
    files = {path.suffix: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert set(files) == {".json", ".md", ".svg"}
    assert out == files[".md"]
    assert "| an image | 0 | " in out
    assert "| of it: VAE | 0 | 1 s | 0.5 s |" in out
    picture = xml.etree.ElementTree.fromstring(files[".svg"])
    words = [e.text or "" for e in picture.iter() if e.tag.endswith("}text")]
    assert "0 LoRAs, accelerated" in words


def test_an_infotext_without_its_mark_is_a_failure(run: Run, api: Api, tmp_path: Path) -> None:
    api.marks = False
    status, out, _ = measured(run, api, tmp_path)
    assert status == 1
    assert "`Accel:` is in 0 of 9 infotexts with acceleration" in out


def test_a_size_that_is_left_to_the_webui_is_no_failure(run: Run, api: Api, tmp_path: Path) -> None:
    api.marks = False
    row = {"backend": "aoti", "size": "2 x 64x64", "ours_s": 0.2, "theirs_s": 0.15, "slower": True}
    api.speeds = [row]
    status, out, _ = measured(run, api, tmp_path)
    assert status == 0
    assert "code computes sizes like 2 x 64x64: aoti took 0.2 s a step there instead of" in out


@pytest.mark.parametrize("before", [True, False])
def test_the_switch_is_left_as_it_was(run: Run, api: Api, tmp_path: Path, before: bool) -> None:
    api.options["accel_enable"] = before
    measured(run, api, tmp_path, "--rounds", 1)
    assert api.options["accel_enable"] is before
    assert {on for on, _, _ in api.prompts} == {True, False}


@posix
@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt_sets_the_switch_back(
    api: Api, tmp_path: Path, root: Path, before: bool
) -> None:
    api.options["accel_enable"] = before
    command = [sys.executable, "-m", "lib_accel", "bench", "webui", "--url", api.url]
    with subprocess.Popen(
        [*command, "--out", tmp_path], cwd=root, env=os.environ, stderr=subprocess.PIPE, text=True
    ) as process:
        while len(api.prompts) < 1 + before:  # the first image is made off, the second one on
            time.sleep(0.01)
        api.hold.clear()
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (130, False)
    assert api.options["accel_enable"] is before


def test_what_the_webui_lacks_is_said_in_a_sentence(run: Run, api: Api, tmp_path: Path) -> None:
    api.missing = {"/sdapi/v1/options"}
    assert "has no API. Start it with --api" in failure(measured(run, api, tmp_path))
    api.missing = {"/accel/v1/status"}
    assert "has no such extension" in failure(measured(run, api, tmp_path))
    api.missing, api.state, api.reason = set(), "fallback", "no memory"
    assert failure(measured(run, api, tmp_path)).endswith("in this WebUI: no memory")
    assert api.options["accel_enable"] is True
    nobody = ("bench", "webui", "--url", "127.0.0.1:1", "--out", tmp_path)
    assert "does not answer" in failure(run(*nobody))


@pytest.mark.parametrize("kind", ["login", "form"])
def test_a_login_is_asked_for_and_used(run: Run, api: Api, tmp_path: Path, kind: str) -> None:
    """`login` is that of --api-auth, `form` that of --gradio-auth."""
    setattr(api, kind, "me:secret")
    assert "it asks for a login. Give --auth" in failure(measured(run, api, tmp_path))
    wrong = failure(measured(run, api, tmp_path, "--auth", "me:wrong"))
    assert "that login is wrong" in wrong
    status, _, _ = measured(run, api, tmp_path, "--auth", "me:secret", "--rounds", 1)
    assert status == 0
