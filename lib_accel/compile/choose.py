"""Which backend serves, and why the better ones do not."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Config
from ..store.store import ArtifactStore
from .aoti.backend import Aoti
from .backend import Backend
from .eager import Eager
from .jit import Jit
from .machine import Target
from .tensorrt import TensorRT

_ALL: dict[str, Backend] = {b.name: b for b in (Aoti(), Jit(), TensorRT(), Eager())}
AUTO_ORDER = ("aoti", "jit", "eager")
"""Best first. TensorRT is taken only when asked for by name: it has to be installed by hand anyway."""


@dataclass(frozen=True)
class Choice:
    backend: Backend
    refused: tuple[tuple[str, str], ...]  # (name, why not) of each better one, best first

    @property
    def reason(self) -> str | None:
        """One line for the user, or None when the first choice serves."""
        return "; ".join(f"{name}: {why}" for name, why in self.refused) or None


def get(name: str) -> Backend:
    return _ALL[name]


def choose(
    target: Target, store: ArtifactStore, config: Config, skip: dict[str, str] | None = None
) -> Choice:
    """The best backend that works here; eager always does. `skip` holds backends that failed already, with the reason."""
    order = AUTO_ORDER if config.backend == "auto" else (config.backend, "eager")
    refused = []
    for name in order:
        why = (skip or {}).get(name) or _ALL[name].why_not(target, store, config)
        if why is None:
            return Choice(_ALL[name], tuple(refused))
        refused.append((name, why))
    raise AssertionError("eager is always available")
