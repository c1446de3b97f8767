"""Which file describes a model to the WebUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

config_default = "v1-inference.yaml"


def find_checkpoint_config(state_dict: Any, info: Any) -> str:
    """Return the file beside a checkpoint with its name, or what suits its tensors."""
    beside = Path(info.filename).with_suffix(".yaml") if info is not None else None
    return str(beside) if beside is not None and beside.exists() else config_default
