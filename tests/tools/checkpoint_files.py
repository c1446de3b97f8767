"""A UNet small enough to write to a file in no time, and the writing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_accel.model.presets import Structure
from lib_accel.tools.checkpoint import LDM_PREFIX, random_weights

TINY = Structure(32, (1, 2), (1, 0), 1, 16, linear=False, res_blocks=1).build()


@pytest.fixture(scope="module", name="weights")
def tiny_weights() -> dict[str, Tensor]:
    """Shared between tests: do not change them."""
    return {name: p.data for name, p in random_weights(TINY, torch.float32, seed=5).items()}


def write(path: Path, tensors: dict[str, Tensor], prefix: str = LDM_PREFIX) -> Path:
    named = {prefix + name: t for name, t in tensors.items()}
    if path.suffix.lower() == ".safetensors":
        save_file(named, path)
    else:
        torch.save(named, path)
    return path
