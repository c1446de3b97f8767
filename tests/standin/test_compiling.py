"""While the compiler runs: what the status shows, and how it is stopped and begun again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .backends import Compiler, compile_slowly
from .host import Host, in_place

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
    assert (progress["part"], progress["parts"]) == (1, 4)
    assert 0 < progress["remaining_s"] <= 40
    finish(host)
    status = host.status()
    assert (status["state"], status["progress"]) == ("ready", None)


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


def test_cancelling_without_a_compiler_at_work_changes_nothing(host: Host) -> None:
    finish(host)
    before = host.status()
    assert host.app.ask("POST", "/accel/v1/cancel") == (200, before)
    assert host.status()["state"] == "ready"
