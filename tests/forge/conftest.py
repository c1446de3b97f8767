"""Starts the Forges whose folders ACCEL_FORGE names; without it every test here is skipped.

ACCEL_FORGE may name several, separated as in PATH. The interpreter of each is in `venv` inside or
beside its folder. ACCEL_E2E_STORE names a folder for compiled code that outlives the run. In
`models` each has the checkpoints wide1 and wide2, the LoRAs wl1 and wl2, and control in ControlNet:
an SD1 of width 320 with channel_mult 1,1,1,1, as Forge knows architectures by the first layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..real_host import show, skip_below
from .server import Server

HERE = Path(__file__).parent
NO_FORGE = "NOT RUN, no real Forge: set ACCEL_FORGE to the folder of a Forge or reForge"
rows: list[str] = []


def folders() -> list[Path]:
    """Return the folders that ACCEL_FORGE names."""
    named = os.environ.get("ACCEL_FORGE", "").split(os.pathsep)
    return [Path(name).resolve() for name in named if name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not folders():
        skip_below(HERE, items, NO_FORGE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    show(terminalreporter, "inside Forge, off against on", rows)


@pytest.fixture(scope="session", params=folders() or [None], ids=lambda f: f.name if f else "none")
def forge(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of compiled code, which all Forges share."""
    return Path(os.environ.get("ACCEL_E2E_STORE") or tmp_path_factory.mktemp("forge") / "store")


@pytest.fixture(scope="session")
def server(forge: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that most tests share; compiled code serves it."""
    server = Server(forge, tmp_path_factory.mktemp(forge.name) / "data", store)
    try:
        server.load()
        yield server
    finally:
        server.stop()
