"""What all tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


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
