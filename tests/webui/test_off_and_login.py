"""Off is the WebUI without the extension; the routes ask for credentials; medvram."""

from __future__ import annotations

import http.cookiejar
import urllib.parse
import urllib.request

import pytest

from lib_accel.tools.webui.client import Refused, basic

from .conftest import Launch, rows
from .host import Server
from .pictures import MIN_DB, Pictures, picture

LOGIN = "me:secret"
FIELDS = {
    "enabled",
    "state",
    "reason",
    "backend",
    "architecture",
    "dtype",
    "device",
    "progress",
    "artifact",
    "counters",
}
FIELDS |= {"control_models", "difference", "images_wait", "speeds", "speedup"}
FIELDS |= {"witnessed", "worst_error", "witness_seconds"}
COUNTERS = {"compiles", "binds", "lora_merges", "accelerated_calls", "eager_calls", "host_calls"}


def _some(server: Server) -> list[Pictures]:
    """Make pictures that must be equal to the bit wherever acceleration is off."""
    image = {"init_images": [picture()], "denoising_strength": 0.7}
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": "Latent"}
    server.make("img2img", **image)
    return [
        server.make(),
        server.make(width=136, height=200, batch_size=2, sampler_name="DPM++ 2M"),
        server.make(prompt="a cat <lora:loraA:1>"),
        server.make(**hires, hr_prompt="a dog <lora:loraB:0.5>"),
        server.make("img2img", **image),
        server.make(prompt="a cat AND a dog", tiling=True),
        server.make(),
    ]


@pytest.fixture(scope="module")
def untouched(launch: Launch) -> list[Pictures]:
    """The pictures of a WebUI without the extension."""
    server = launch(extension=False)
    made = _some(server)
    with pytest.raises(Refused, match="404"):
        server.status()
    server.stop()
    return made


def test_off_is_the_webui_without_the_extension(server: Server, untouched: list[Pictures]) -> None:
    server.use("tinyA")
    server.make(prompt="a cat <lora:loraB:0.3>")
    server.options(accel_enable=False)
    made = _some(server)
    server.options(accel_enable=True)
    assert [a.same(b) for a, b in zip(made, untouched, strict=True)] == [True] * len(made)
    assert not any(p.served for p in made)


def test_disabled_and_behind_api_auth(launch: Launch, untouched: list[Pictures]) -> None:
    server = launch("--accel-disable", "--api-auth", LOGIN, login=LOGIN)
    assert [a.same(b) for a, b in zip(_some(server), untouched, strict=True)] == [True] * len(
        untouched
    )
    status = server.status()
    assert (status["enabled"], status["state"]) == (False, "off")
    assert status.keys() == FIELDS
    for method, path in (("GET", "status"), ("POST", "prebuild"), ("DELETE", "artifacts/0123")):
        for wrong in (
            "",
            basic("me:wrong"),
            basic("you:secret"),
            basic("me:"),
            "Bearer x",
            "Basic !",
        ):
            with pytest.raises(Refused) as e:
                server.request(
                    method,
                    f"/accel/v1/{path}",
                    headers={"Authorization": wrong} if wrong else {"Authorization": "None"},
                )
            assert e.value.code == 401, (method, path, wrong)
    server.stop()


def test_medvram_and_behind_gradio_auth(launch: Launch) -> None:
    server = launch("--medvram", "--gradio-auth", LOGIN)
    url = f"http://127.0.0.1:{server.port}"
    for method, path in (("GET", "status"), ("POST", "prebuild"), ("DELETE", "artifacts/0123")):
        for headers in (
            {},
            {"Authorization": basic(LOGIN)},
            {"Cookie": "access-token=x"},
            {"Cookie": "access-token-unsecure="},
        ):
            with pytest.raises(Refused) as e:
                server.request(method, f"/accel/v1/{path}", headers=headers)
            assert e.value.code == 401, (method, path, headers)
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    user, _, password = LOGIN.partition(":")
    opener.open(
        f"{url}/login",
        urllib.parse.urlencode({"username": user, "password": password}).encode(),
        timeout=60,
    ).close()
    cookie = "; ".join(f"{c.name}={c.value}" for c in jar)
    plain = server.request
    server.request = lambda *a, **k: plain(*a, **{**k, "headers": {"Cookie": cookie}})  # type: ignore[method-assign]
    server.wait_ready()
    for name, payload in (
        ("medvram", {}),
        ("medvram, LoRA", {"prompt": "a cat <lora:loraA:1>"}),
        ("medvram, batch", {"batch_size": 2}),
    ):
        c = server.compare(**payload)
        rows.append(f"{name:32} {c.line}")
        assert c.decibels >= MIN_DB
        assert (c.calls > 0, c.on.served) == (True, True)
    server.stop()


def test_the_routes_answer(server: Server) -> None:
    status = server.use("tinyA")
    assert status.keys() == FIELDS
    assert status["counters"].keys() == COUNTERS
    assert all(type(v) is int for v in status["counters"].values())
    assert (status["enabled"], status["state"], status["backend"], status["dtype"]) == (
        True,
        "ready",
        "aoti",
        "float32",
    )
    assert status["artifact"].keys() == {"key", "bytes"}
    assert server.post("/accel/v1/prebuild")["state"] == "ready"  # nothing to do
    assert server.status()["counters"]["compiles"] == status["counters"]["compiles"]
    for bad in ("nothing", "..%2F..%2Fetc", "0" * 64, "%00"):
        with pytest.raises(Refused) as e:
            server.request("DELETE", f"/accel/v1/artifacts/{bad}")
        assert e.value.code in (404, 409), bad
    for switched_off in ({"accel_enable": False},):
        server.options(**switched_off)
        assert server.status()["state"] == "off"
        with pytest.raises(Refused) as e:
            server.post("/accel/v1/prebuild")
        assert e.value.code == 409
        server.options(accel_enable=True)
