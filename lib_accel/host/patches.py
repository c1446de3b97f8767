"""Names who has patched a class, in words from which a user knows what to switch off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules import sd_hijack
from modules.paths_internal import extensions_dir

from .unet.functions import behind, is_known

_ATTENTION = ("CrossAttention", "MemoryEfficientCrossAttention")


def patched_by(cls: type, function: object) -> str:
    """Return that a class was patched with this function, and by which setting or extension."""
    optimizer: Any = sd_hijack.current_optimizer
    if cls.__name__ in _ATTENTION and not is_known(type(optimizer).__module__):
        return f"{optimizer.title()} computes attention (Settings, Optimizations)"
    for each in (function, *behind(function)):
        file = Path(getattr(getattr(each, "__code__", None), "co_filename", ""))
        if file.is_relative_to(extensions_dir):
            extension = file.relative_to(extensions_dir).parts[0]
            return f"the class {cls.__name__} was patched by the extension {extension}"
    return f"the class {cls.__name__} was patched"
