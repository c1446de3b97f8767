"""Code that serves goes on serving until its successor is compiled, and the page says so."""

from __future__ import annotations

from typing import Any

import pytest

from .backends import Compiler
from .host import Host
from .test_compiling import CANCELLED, Waiting, cancel, compiler, finish, host
from .test_pages import _button, _line, _press, _shown

__all__ = ["compiler", "host"]


@pytest.fixture
def served(host: Host) -> Host:
    """With code that serves and was deleted. The compiler needs time for the next."""
    finish(host)
    host.image()
    Compiler.stored = False
    Compiler.may_finish.clear()
    return host


def test_deleted_code_serves_until_its_successor_is_ready(served: Host) -> None:
    host = served
    first = host.image()
    status = host.app.ask("POST", "/accel/v1/prebuild")[1]
    assert (status["state"], status["backend"]) == ("ready", "compiler")
    assert status["progress"]["parts"] == 5
    assert host.image().extra_generation_params["Accel"] == "compiler"
    host.opts.set("accel_while_compiling", "wait")
    assert host.image().extra_generation_params["Accel"] == "compiler", "nothing to wait for"
    finish(host)
    status = host.status()
    assert (status["state"], status["progress"], status["reason"]) == ("ready", None, None)
    assert host.image().made[0].equal(first.made[0])


def test_deleted_code_serves_on_where_its_successor_is_cancelled(served: Host) -> None:
    host = served
    host.app.ask("POST", "/accel/v1/prebuild")
    status = cancel(host)
    assert (status["state"], status["reason"]) == ("ready", CANCELLED)
    assert host.image().extra_generation_params["Accel"] == "compiler"


def test_deleted_code_serves_the_next_model_where_its_successor_is_cancelled(served: Host) -> None:
    host = served
    host.app.ask("POST", "/accel/v1/prebuild")
    cancel(host)
    for seed in (1, 0):
        host.load(seed)
        status = host.status()
        assert (status["state"], status["reason"]) == ("ready", CANCELLED)
        assert host.image().extra_generation_params["Accel"] == "compiler"
    host.opts.set("accel_backend", "eager")
    assert host.image().extra_generation_params["Accel"] == "eager", "another one is named"


def test_a_build_that_is_asked_for_during_an_image_begins_after_it(served: Host) -> None:
    from modules.call_queue import queue_lock

    host = served
    with queue_lock:  # as the WebUI holds it while it makes an image
        _press(host, "build")
        assert "begins when the image" in _shown(host, "message")
        assert not _button(host, "build").interactive
        assert host.status()["progress"] is None
    assert host.status()["progress"]["parts"] == 5
    cancel(host)
    assert host.status()["progress"] is None, "asked for once"


def test_a_build_that_waits_for_an_image_can_be_cancelled(served: Host) -> None:
    from modules.call_queue import queue_lock

    host = served
    with queue_lock:
        host.app.ask("POST", "/accel/v1/prebuild")
        host.app.ask("POST", "/accel/v1/cancel")
    assert host.status()["progress"] is None


def test_a_build_that_is_asked_for_during_an_image_begins_before_the_next(served: Host) -> None:
    from modules.call_queue import queue_lock

    host = served
    with queue_lock:
        host.app.ask("POST", "/accel/v1/prebuild")
    host.image()
    assert not host.service.current().engine.job.done
    finish(host)


def test_the_tab_tells_of_the_successor_and_can_cancel_it(served: Host) -> None:
    host = served
    _press(host, "build")
    assert "The compiler is running" in _shown(host, "message")
    assert "Compiling 1 of 5" in _line(host)
    assert "<progress" in _line(host)
    assert (_button(host, "build").interactive, _button(host, "cancel").visible) == (False, True)
    job = host.service.current().engine.job
    _press(host, "cancel")
    assert "being cancelled" in _shown(host, "message")
    assert (_button(host, "build").interactive, _button(host, "cancel").visible) == (True, False)
    assert job.wait(60)
    assert "<progress" not in _line(host)


class Other(Compiler):
    """Another backend, with the same compiler."""

    name = "other"


@pytest.fixture
def two(served: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """With a second backend that can be chosen."""
    monkeypatch.setattr(Other, "stored", False)
    backends = served.service._session._backends
    monkeypatch.setitem(backends, Other.name, Other())
    options = served.module("lib_accel.host.options")
    words = (*options.OPTIONS["accel_backend"].words, Other.name)
    monkeypatch.setitem(options.OPTIONS, "accel_backend", options.Word("auto", words))
    return served


@pytest.mark.parametrize(("name", "value"), [("accel_backend", "other"), ("accel_graphs_mib", 0)])
def test_a_changed_setting_ends_nothing_that_serves(two: Host, name: str, value: Any) -> None:
    two.opts.set(name, value)
    status = two.status()
    assert (status["state"], status["backend"]) == ("ready", "compiler")
    assert status["progress"]["parts"] == 5
    assert two.image().extra_generation_params["Accel"] == "compiler"
    finish(two)
    backend = "other" if value == "other" else "compiler"
    assert two.image().extra_generation_params["Accel"] == backend
    assert (two.status()["state"], two.status()["progress"]) == ("ready", None)


def test_an_image_that_waits_gets_the_chosen_backend(two: Host) -> None:
    two.opts.set("accel_backend", "other")
    waiting = Waiting(two)
    Compiler.may_finish.set()
    assert waiting.image().extra_generation_params["Accel"] == "other"


def test_the_chosen_backend_can_be_built_after_it_was_cancelled(two: Host) -> None:
    two.opts.set("accel_backend", "other")
    cancel(two)
    assert two.status()["state"] == "ready"
    _press(two, "refresh")
    assert _button(two, "build").interactive
    _press(two, "build")
    finish(two)
    assert two.status()["backend"] == "other"


def test_code_that_failed_serves_no_further(two: Host) -> None:
    two.service.current().engine._provider.drop("it failed while computing: no")
    two.opts.set("accel_backend", "other")
    assert two.status()["state"] == "compiling"


def test_switched_on_in_the_middle_of_an_image_says_when_it_begins(host: Host) -> None:
    """No model is being loaded then."""
    host.opts.set("accel_enable", False)
    with host.module("modules.call_queue").queue_lock:
        host.opts.set("accel_enable", True)
        assert host.status()["reason"] == "it begins with the next image"
    host.image()
    assert host.status()["state"] == "compiling"
