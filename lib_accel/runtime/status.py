"""What an accelerated UNet reports about itself."""

from __future__ import annotations

from dataclasses import dataclass

from ..compile.jobs import Progress


@dataclass
class Counters:
    """What an engine has done so far."""

    compiles: int = 0  # units compiled
    binds: int = 0  # times that weights were bound, the first time included
    accelerated_calls: int = 0  # UNet calls that compiled code has computed


@dataclass(frozen=True)
class Status:
    """How an accelerated UNet stands."""

    state: str  # "eager", "compiling", "ready" or "fallback"
    reason: str | None  # why no better backend serves, or what failed
    backend: str
    architecture: str
    dtype: str
    device: str
    progress: Progress | None
    artifact: dict[str, object] | None  # {"key": hex digest, "bytes": size in the store}
    counters: Counters
