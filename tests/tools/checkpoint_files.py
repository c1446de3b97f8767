"""A UNet that is small enough to write to a file at once, and the writing."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_accel.model.presets import Structure
from lib_accel.tools.checkpoint import LDM_PREFIX

TINY = Structure(32, (1, 2), (1, 0), 1, 16, linear=False, res_blocks=1).build()


def write(path: Path, tensors: dict[str, Tensor], prefix: str = LDM_PREFIX) -> Path:
    """Write a checkpoint in the format of its ending; return its path."""
    named = {prefix + name: t for name, t in tensors.items()}
    if path.suffix.lower() == ".safetensors":
        save_file(named, path)
    else:
        torch.save(named, path)
    return path
