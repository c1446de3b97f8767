"""While a compiler takes minutes, what another one makes within seconds serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .backends import Compiler, Quick, compile_slowly
from .host import Host, in_place
from .test_pages import _line


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A stand-in with a loaded model: `Compiler` and `Quick` are both at work."""
    compile_slowly(monkeypatch, Quick)
    with in_place():
        host = Host("--accel-store", str(tmp_path))
        host.load()
        yield host
        host.close()


def finish(host: Host, kind: type[Compiler]) -> None:
    """Let the job of a backend end, and wait for it."""
    kind.may_finish.set()
    *_, job = host.service._session.backend(kind.name).jobs
    assert job.wait(60)


def served_by(host: Host) -> Any:
    """Return what the infotext of an image names."""
    return host.image().extra_generation_params.get("Accel")


def test_it_serves_until_the_other_one_is_ready(host: Host) -> None:
    assert (host.status()["state"], served_by(host)) == ("compiling", None)
    finish(host, Quick)
    assert served_by(host) == "quick"
    status = host.status()
    assert (status["state"], status["backend"], status["reason"]) == ("ready", "quick", None)
    assert status["progress"]["parts"] == 5
    assert "quick" in _line(host)
    assert "Compiling 1 of 5" in _line(host)
    finish(host, Compiler)
    assert served_by(host) == "compiler"
    status = host.status()
    assert (status["backend"], status["progress"], status["reason"]) == ("compiler", None, None)
    assert [name for name, _ in host.service.images] == ["", "quick", "compiler"]


def test_the_status_begins_to_use_it_where_no_image_is_made(host: Host) -> None:
    finish(host, Quick)
    assert (host.status()["state"], host.status()["backend"]) == ("ready", "quick")


def test_an_image_that_waits_waits_for_the_better_one(host: Host) -> None:
    finish(host, Quick)
    finish(host, Compiler)
    host.opts.set("accel_while_compiling", "wait")
    assert served_by(host) == "compiler"


def test_what_fails_is_a_reason_and_the_other_one_goes_on(host: Host) -> None:
    Quick.failure = "the driver refuses the code"
    finish(host, Quick)
    assert served_by(host) is None
    status = host.status()
    assert status["state"] == "compiling"
    assert "quick: the driver refuses the code" in status["reason"]
    finish(host, Compiler)
    assert served_by(host) == "compiler"
    assert host.status()["reason"] is None


def test_code_that_fails_while_it_stands_in_is_a_reason_until_then(host: Host) -> None:
    finish(host, Quick)
    assert served_by(host) == "quick"
    host.service.current().engine._provider.drop("it failed while computing: no")
    assert "quick: it failed while computing: no" in host.status()["reason"]
    finish(host, Compiler)
    assert (served_by(host), host.status()["reason"]) == ("compiler", None)


def test_where_the_better_one_fails_it_serves_on(host: Host) -> None:
    finish(host, Quick)
    Compiler.failure = "no room"
    finish(host, Compiler)
    assert served_by(host) == "quick"
    status = host.status()
    assert (status["state"], status["backend"]) == ("ready", "quick")
    assert (status["reason"], status["progress"]) == ("compiler: no room", None)


def test_where_the_better_one_is_cancelled_it_serves_on(host: Host) -> None:
    finish(host, Quick)
    assert served_by(host) == "quick"
    host.app.ask("POST", "/accel/v1/cancel")
    (job,) = host.service._session.backend("compiler").jobs
    assert job.wait(60)
    assert served_by(host) == "quick"
    assert "compiling was cancelled" in host.status()["reason"]


def test_both_are_cancelled_together(host: Host) -> None:
    host.app.ask("POST", "/accel/v1/cancel")
    for name in "compiler", "quick":
        (job,) = host.service._session.backend(name).jobs
        assert job.wait(60)
    assert host.status()["state"] == "fallback"
    assert served_by(host) not in ("compiler", "quick")


def test_nothing_stands_in_for_a_backend_that_was_named(host: Host) -> None:
    finish(host, Quick)
    assert served_by(host) == "quick"
    Quick.stored = False
    host.opts.set("accel_backend", "compiler")
    assert served_by(host) == "quick", "what served goes on"
    host.service.current().engine._provider.drop("no")
    assert served_by(host) is None
    finish(host, Compiler)
    assert served_by(host) == "compiler"


def test_the_next_checkpoint_is_served_at_once(host: Host) -> None:
    finish(host, Quick)
    assert served_by(host) == "quick"
    host.load(seed=1)
    assert served_by(host) == "quick"
