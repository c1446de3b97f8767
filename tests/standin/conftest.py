"""Fixtures: a running stand-in for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..threads import one_thread  # noqa: F401  used by every test
from .host import Host, in_place

Start = Callable[..., Host]


@pytest.fixture
def start(tiny_store: Path) -> Iterator[Start]:
    """A function that starts one with command-line flags and without a model; once in a test.

    Its store holds the compiled code of the tiny UNet.
    """
    running: list[Host] = []

    def start(*flags: str) -> Host:
        assert not running
        running.append(Host("--accel-store", str(tiny_store), *flags))
        return running[0]

    with in_place():
        yield start
        for host in running:
            host.close()


@pytest.fixture
def host(start: Start) -> Host:
    """A stand-in with a loaded model that compiled code serves."""
    host = start()
    host.load()
    status = host.status()
    assert (status["state"], status["backend"]) == ("ready", "aoti"), status["reason"]
    return host


@pytest.fixture
def eager_host(tmp_path: Path) -> Iterator[Host]:
    """A stand-in with a loaded model that no compiled code serves: it starts in a moment."""
    with in_place():
        host = Host("--accel-store", str(tmp_path), "--accel-backend", "eager")
        host.load()
        yield host
        host.close()
