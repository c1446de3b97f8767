"""A running stand-in for each test, and nothing of it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..threads import one_thread  # noqa: F401  for every test here
from .host import Host, in_place

Start = Callable[..., Host]


@pytest.fixture
def start(tiny_store: Path) -> Iterator[Start]:
    """Starts it with command-line flags, without a model; once in a test. Its store has the tiny UNet's code."""
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
    """With a model loaded and its code in place."""
    host = start()
    host.load()
    assert (host.status()["state"], host.status()["backend"]) == ("ready", "aoti"), host.status()[
        "reason"
    ]
    return host
