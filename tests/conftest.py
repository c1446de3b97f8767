"""What all tests share."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from .tiny import Built

TRUST_VECTORS = "TORCHINDUCTOR_VEC_ISA_OK"
"""torch's variable: what the processor can do, the compiler can too."""


def pytest_configure() -> None:
    """Prepare this process, and by it all that the tests start."""
    # Test tensors are small and two workers share the cores: with more threads some tests take
    # fifty times as long on a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Each compile job would ask the C++ compiler for its vector units, 4 s of processor time. It
    # does so in `built`.
    os.environ.setdefault(TRUST_VECTORS, "1")
    # A shell lets what it starts in the background ignore Ctrl-C, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the compiled store as slow, and run it after the fast tests."""
    for item in items:
        if "built" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections.

    The extension makes one whenever a model goes: with all of torch to look through, each takes
    half a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Draw the same numbers in a test whether it runs alone or among others."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def packaging() -> None:
    """Skip tests of what only a torch that makes packages (2.6 and later) can do."""
    import torch

    from lib_accel.compile.machine import probe

    if not probe(torch.device("cpu")).packaging:
        pytest.skip(f"NOT RUN: torch {torch.__version__} makes no packages")


@pytest.fixture(scope="session")
def built(packaging: None, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A store with the artifact of tests/tiny.py, compiled once for all workers of pytest-xdist."""
    from . import tiny

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # common to the workers of this run
    report = base / "tiny" / "built.pickle"
    with FileLock(base / "tiny.lock"):
        if not report.exists():
            report.parent.mkdir(exist_ok=True)  # it exists if an earlier try failed
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv(TRUST_VECTORS)
                report.write_bytes(pickle.dumps(tiny.build(report.parent / "store")))
    return pickle.loads(report.read_bytes())


@pytest.fixture(scope="session")
def tiny_store(built: Built) -> Path:
    """The store of `built`. Tests that change it use `own_store`."""
    assert built.status.state == "ready", built.status.reason
    return built.store


@pytest.fixture(scope="session", autouse=True)
def own_profile(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the key that signs compiled code out of the tester's profile; all workers share it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["XDG_CONFIG_HOME"] = str(base / "config")
    os.environ.pop("ACCEL_STORE_KEY_FILE", None)


@pytest.fixture
def own_store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the store, for one test."""
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))
