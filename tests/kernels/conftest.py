"""The kernels, compiled once by g++ for all workers of pytest-xdist."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest
import torch
from filelock import FileLock

from . import emulator
from .emulator import EmulatedKernels

Make = Callable[..., EmulatedKernels]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make the kernels of a dtype, on the CPU; see EmulatedKernels."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("NOT RUN: there is no g++ to compile the kernels for the CPU")
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # common to the workers of this run
    folder = base / "kernels"
    with FileLock(base / "kernels.lock"):
        if not (folder / "ready").exists():
            folder.mkdir(exist_ok=True)
            try:
                emulator.build(folder, compiler)
            except subprocess.CalledProcessError as error:
                pytest.fail(f"g++ does not compile the kernels:\n{error.stderr}")
            (folder / "ready").touch()

    def make(dtype: torch.dtype, multiprocessors: int = 2) -> EmulatedKernels:
        return EmulatedKernels(folder, dtype, multiprocessors)

    return make


@pytest.fixture(params=emulator.DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def kernels(make: Make, request: pytest.FixtureRequest) -> EmulatedKernels:
    """The kernels of each dtype."""
    return make(request.param)
