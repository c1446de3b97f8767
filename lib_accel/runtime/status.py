"""What an accelerated UNet reports about itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..compile.jobs import Progress


@dataclass
class Counters:
    """What an engine has done so far."""

    compiles: int = 0  # units compiled
    binds: int = 0  # times that weights were bound, the first time included
    accelerated_calls: int = 0  # UNet calls that compiled code has computed
    eager_calls: int = 0  # UNet calls that the clean UNet has computed, not compiled
    compile_seconds: float = 0.0  # that jobs took which compiled something
    compile_failures: int = 0  # jobs that failed


@dataclass(frozen=True)
class Status:
    """How an accelerated UNet stands."""

    state: str  # "off", "eager", "compiling", "ready" or "fallback"
    reason: str | None  # why no better backend serves, or what failed
    backend: str
    architecture: str
    dtype: str
    device: str
    progress: Progress | None = None  # of the compiler, also while other code serves
    artifact: dict[str, object] | None = None  # {"key": hex digest, "bytes": size in the store}
    kept_bytes: int = 0  # video memory of a second copy of the weights, kept to be faster
    counters: Counters = field(default_factory=Counters)

    @property
    def sentence(self) -> str:
        """What serves which network, and how, for the console."""
        why = f" ({self.reason})" if self.reason else ""
        what = f"{self.architecture}, {self.dtype} on {self.device}"
        return f"{what}: backend {self.backend}, {self.state}{why}"

    def to_dict(self) -> dict[str, object]:
        """Return what the API shows of it, without the counters."""
        shown = {name: value for name, value in vars(self).items() if name != "counters"}
        return {**shown, "progress": self.progress.to_dict() if self.progress else None}
