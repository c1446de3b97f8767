"""While the compiler runs: what the status shows, and how it is stopped and begun again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ..aoti.processes import until
from .backends import Compiler, compile_slowly
from .host import Host, counted, in_place

CANCELLED = "compiler: compiling was cancelled; Build now starts it again"


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> type[Compiler]:
    return compile_slowly(monkeypatch)


@pytest.fixture
def host(tmp_path: Path, compiler: type[Compiler]) -> Iterator[Host]:
    """A stand-in with a loaded model whose code is being compiled."""
    with in_place():
        host = Host("--accel-store", str(tmp_path))
        host.load()
        yield host
        host.close()


def finish(host: Host) -> None:
    """Let the compiler finish, and wait for it."""
    job = host.service.current().engine.job
    Compiler.may_finish.set()
    assert job.wait(60)


def cancel(host: Host) -> dict[str, object]:
    """Cancel as a program does; return the status after the job has ended."""
    job = host.service.current().engine.job
    assert host.app.ask("POST", "/accel/v1/cancel")[0] == 200
    assert job.wait(60)
    return host.status()


def test_the_status_shows_parts_and_remaining_seconds(host: Host) -> None:
    status = host.status()
    assert status["state"] == "compiling"
    progress = status["progress"]
    assert (progress["part"], progress["parts"]) == (1, 5)
    assert 0 < progress["remaining_s"] <= 50
    finish(host)
    status = host.status()
    assert (status["state"], status["progress"]) == ("ready", None)


def test_images_beside_the_compiler_are_marked(host: Host) -> None:
    p, script = host.image(), host.module("lib_accel.host.pages.script").AccelScript()
    marks = []
    for end in (False, True, False):
        script.before_process_batch(p)
        host.service.clock.start(SimpleNamespace(x=torch.zeros(2, 4, 8, 8)))
        host.service.clock.stop(None)
        if end:
            finish(host)
        script.postprocess_batch(p)
        marks.append(host.service.clock.timings[-1].beside_compiler)
    assert marks == [True, True, False]


def test_a_cancelled_compile_is_not_begun_again_until_it_is_asked_for(host: Host) -> None:
    status = cancel(host)
    assert (status["state"], status["reason"]) == ("fallback", CANCELLED)
    assert host.image().made, "images go on"
    host.load(seed=1)  # another checkpoint of the architecture
    assert host.status()["reason"] == CANCELLED
    host.reload_ui()
    host.opts.set("accel_witness_steps", 0)
    assert host.status()["reason"] == CANCELLED, "an option that does not touch compiled code"
    assert host.app.ask("POST", "/accel/v1/prebuild")[1]["state"] == "compiling"
    finish(host)
    assert host.status()["state"] == "ready"


def test_a_build_can_be_asked_for_before_the_cancelled_one_has_ended(host: Host) -> None:
    before = host.service.current().engine.job
    host.app.ask("POST", "/accel/v1/cancel")
    assert host.app.ask("POST", "/accel/v1/prebuild")[1]["state"] == "compiling"
    assert host.service.current().engine.job is not before


@pytest.mark.parametrize(
    ("name", "value", "back"),
    [("accel_backend", "compiler", "auto"), ("accel_enable", False, True)],
)
def test_a_changed_option_begins_a_cancelled_compile_again(
    host: Host, name: str, value: object, back: object
) -> None:
    cancel(host)
    host.opts.set(name, value)
    host.opts.set(name, back)
    assert host.status()["state"] == "compiling"


def test_a_job_with_settings_of_its_own_begins_nothing_again(host: Host) -> None:
    """As the cells of an X/Y/Z plot."""
    cancel(host)
    for backend in ("eager", "compiler", "eager", "auto"):
        assert host.image(override_settings={"accel_backend": backend}).made
        assert not host.service.jobs()
    assert host.status()["reason"] == CANCELLED


def test_cancelling_without_a_compiler_at_work_changes_nothing(host: Host) -> None:
    finish(host)
    before = host.status()
    assert host.app.ask("POST", "/accel/v1/cancel") == (200, before)
    assert host.status()["state"] == "ready"


# -- images that wait


class Waiting:
    """An image that waits for the compiler, in a thread of its own."""

    def __init__(self, host: Host, setting: str = "wait", **options: Any):
        host.opts.set("accel_while_compiling", setting)
        self.state = host.module("modules.shared").state
        self.made: list[Any] = []
        self.thread = threading.Thread(
            target=lambda: self.made.append(host.image(**options)), daemon=True
        )
        self.thread.start()
        until("the image to wait", lambda: self.state.textinfo)

    def image(self) -> Any:
        """Return the image, once it is made."""
        self.thread.join(60)
        assert not self.thread.is_alive()
        assert self.state.textinfo is None
        return self.made[0]


def test_an_image_waits_with_progress_and_is_accelerated(host: Host) -> None:
    waiting = Waiting(host)
    assert host.status()["images_wait"]
    assert waiting.state.textinfo == (
        "Compiling 1 of 5, about 1 min left; Interrupt makes the image now, slower"
    )
    Compiler.may_finish.set()
    p = waiting.image()
    assert len(p.made) == 1
    assert p.extra_generation_params["Accel"] == "compiler"


def test_pages_and_settings_answer_while_an_image_waits(host: Host) -> None:
    waiting = Waiting(host)
    assert host.status()["state"] == "compiling"
    host.opts.set("accel_graphs_mib", 0)
    assert host.app.ask("POST", "/accel/v1/prebuild")[1]["state"] == "compiling"
    Compiler.may_finish.set()
    waiting.image()


def test_settings_and_loading_do_not_wait_between_images(host: Host) -> None:
    host.opts.set("accel_while_compiling", "wait")
    host.load(seed=1)
    host.opts.set("accel_graphs_mib", 0)
    assert host.status()["state"] == "compiling"


@pytest.mark.parametrize("button", ["interrupt", "skip", "stop_generating"])
def test_a_button_ends_the_wait_and_the_image_is_made(host: Host, button: str) -> None:
    waiting = Waiting(host)
    with counted(host, host_calls=2):  # both of its steps
        getattr(waiting.state, button)()
        p = waiting.image()
    assert len(p.made) == 1
    assert "Accel" not in p.extra_generation_params
    assert host.status()["state"] == "compiling", "the compiler goes on"


@pytest.mark.parametrize(("button", "made"), [("interrupt", 1), ("skip", 2)])
def test_interrupt_ends_the_job_and_skip_goes_on(host: Host, button: str, made: int) -> None:
    waiting = Waiting(host, n_iter=2)
    getattr(waiting.state, button)()
    if button == "skip":
        until("the first image", lambda: not waiting.state.textinfo)
        until("the second to wait", lambda: waiting.state.textinfo)
        Compiler.may_finish.set()
    assert len(waiting.image().made) == made


@pytest.mark.parametrize(
    ("name", "value"), [("accel_while_compiling", "continue"), ("accel_enable", False)]
)
def test_a_setting_taken_back_ends_the_wait_at_once(host: Host, name: str, value: Any) -> None:
    waiting = Waiting(host)
    host.opts.set(name, value)
    p = waiting.image()
    assert len(p.made) == 1
    assert "Accel" not in p.extra_generation_params


def test_a_cancelled_compile_ends_the_wait(host: Host) -> None:
    waiting = Waiting(host)
    host.app.ask("POST", "/accel/v1/cancel")
    assert len(waiting.image().made) == 1
    assert host.status()["reason"] == CANCELLED


def test_a_compiler_that_waits_for_video_memory_ends_the_wait(host: Host) -> None:
    """The model itself may hold what it waits for."""
    waiting = Waiting(host)
    host.service.current().engine.job.waits_for_memory = True
    assert len(waiting.image().made) == 1
    assert host.status()["state"] == "compiling", "it goes on waiting"


def test_only_the_request_that_asks_for_it_waits(host: Host) -> None:
    assert host.image().made
    waiting = Waiting(host, "continue", override_settings={"accel_while_compiling": "wait"})
    Compiler.may_finish.set()
    assert waiting.image().made
    assert not host.status()["images_wait"]
