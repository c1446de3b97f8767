"""Images that wait for the compiler in a real WebUI: nothing else waits, and a button ends it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from .conftest import Launch
from .host import Server
from .pictures import Pictures


@pytest.fixture(scope="module")
def compiling(launch: Launch) -> Iterator[Server]:
    """A server whose compiler is at work until the tests of this file are over."""
    server = launch(compiled=False)
    server.options(accel_while_compiling="wait")
    yield server
    server.post("/accel/v1/cancel")
    server.options(accel_while_compiling="continue")
    server.stop()


@contextlib.contextmanager
def _image(server: Server, **payload: object) -> Iterator[list[Pictures]]:
    """Ask for an image, and go on when it waits for the compiler. At the end it is made."""
    made: list[Pictures] = []
    thread = threading.Thread(target=lambda: made.append(server.make(**payload)))
    thread.start()
    end = time.monotonic() + 120
    while "ompil" not in str(server.get("/sdapi/v1/progress")["textinfo"]):
        assert time.monotonic() < end
        time.sleep(0.2)
    yield made
    thread.join(120)
    assert [picture.served for picture in made] == [False]


@pytest.mark.parametrize(("button", "pictures"), [("interrupt", 1), ("skip", 2)])
def test_a_button_ends_the_wait_and_the_image_is_made(
    compiling: Server, button: str, pictures: int
) -> None:
    with _image(compiling, n_iter=2, override_settings={"return_grid": False}) as made:
        compiling.post(f"/sdapi/v1/{button}")
        if pictures == 2:  # the second one waits as well
            time.sleep(5)
            compiling.post(f"/sdapi/v1/{button}")
    assert len(made[0].pixels) == pictures


def test_a_setting_taken_back_ends_the_wait_at_once(compiling: Server) -> None:
    with _image(compiling):
        begun = time.monotonic()
        compiling.options(accel_graphs_mib=64)
        assert time.monotonic() - begun < 10, "settings wait for nothing"
        assert compiling.status()["progress"]["parts"] > 1
        compiling.options(accel_while_compiling="continue")
    compiling.options(accel_while_compiling="wait")


def test_a_cancelled_compile_ends_the_wait_and_stays_cancelled(compiling: Server) -> None:
    with _image(compiling):
        compiling.post("/accel/v1/cancel")
    assert "compiling was cancelled; Build now" in compiling.status()["reason"]
    assert not compiling.make().served
    assert compiling.post("/accel/v1/prebuild")["state"] == "compiling"
