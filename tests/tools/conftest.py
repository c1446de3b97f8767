"""Fixtures for the tests of the command line, the bench and the readers of checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_accel.model.random_weights import random_weights
from lib_accel.tools.cli import main

from ..threads import one_thread  # noqa: F401  (for every test here)
from .checkpoint_files import TINY
from .commands import Result, Run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def call(*arguments: object) -> Result:
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as e:  # argparse: wrong arguments, --help
            status = int(e.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The weights of a tiny UNet. Shared between tests: do not change them."""
    return {name: p.data for name, p in random_weights(TINY, torch.float32, seed=5).items()}
