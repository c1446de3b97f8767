"""What all tests share."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .tiny import Built


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Each test draws the same numbers, alone or among others."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def packaging() -> None:
    """For tests of what only a torch that makes packages can do (2.6 and later)."""
    import torch

    from lib_accel.compile.machine import probe

    if not probe(torch.device("cpu")).packaging:
        pytest.skip(f"NOT RUN: torch {torch.__version__} makes no packages")


@pytest.fixture(scope="session")
def built(packaging: None, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A store with the artifact of tests/tiny.py, compiled once (seconds a unit), and what the engine that made it says."""
    from . import tiny

    return tiny.build(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture(scope="session")
def tiny_store(built: Built) -> Path:
    """Not to be changed: tests that do use `own_store`."""
    assert built.status.state == "ready", built.status.reason
    return built.store


@pytest.fixture
def own_store(tiny_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))
