"""A UNet that is small enough to write to a file at once, and the writing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_accel.errors import AccelError, BadCheckpoint
from lib_accel.model.presets import Structure
from lib_accel.tools.checkpoints.reading import LDM_PREFIX, Checkpoint, open_checkpoint

TINY = Structure(32, (1, 2), (1, 0), 1, 16, linear=False, res_blocks=1).build()


def write(path: Path, tensors: dict[str, Tensor], prefix: str = LDM_PREFIX) -> Path:
    """Write a checkpoint in the format of its ending; return its path."""
    named = {prefix + name: t for name, t in tensors.items()}
    if path.suffix.lower() == ".safetensors":
        save_file(named, path)
    else:
        torch.save(named, path)
    return path


def refused(
    path: Path,
    error: type[AccelError] = BadCheckpoint,
    act: Callable[[Checkpoint], object] = Checkpoint.load_unet,
) -> str:
    """Return the message with which opening or `act` refuses the file.

    It names the file and what was expected.
    """
    with pytest.raises(error) as e:
        act(open_checkpoint(path))
    assert type(e.value) is error
    message = str(e.value)
    assert str(path) in message
    assert "xpected" in message
    return message
