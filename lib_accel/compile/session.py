"""What all accelerated UNets of one process share: the backends with their code and jobs, and what could not be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..config import AUTO, Config
from ..store.store import ArtifactStore
from .aoti.backend import Aoti
from .backend import Backend
from .eager import Eager
from .jit import Jit
from .target import Target

BACKENDS = (Aoti, Jit, Eager)
"""Every backend, best first. A new one is added here and nowhere else."""


@dataclass(frozen=True)
class Choice:
    """The backend that serves, None where none can, and why each better one does not."""

    backend: Backend | None
    refused: tuple[tuple[str, str], ...]  # (name, reason), best first

    @property
    def reason(self) -> str | None:
        """One line for the user; None when the first choice serves."""
        return "; ".join(f"{name}: {why}" for name, why in self.refused) or None


class Session:
    """Owned by the host, or by whoever accelerates several UNets: they share compiled code and jobs through it."""

    def __init__(self) -> None:
        self._backends: dict[str, Backend] = {b.name: b() for b in BACKENDS}
        self._failures: dict[tuple[Config, str], dict[str, str]] = {}

    def backend(self, name: str) -> Backend:
        """Return a backend by name. Raises KeyError."""
        return self._backends[name]

    def choose(
        self,
        target: Target,
        store: ArtifactStore,
        config: Config,
        failed: Mapping[str, str] | None = None,
    ) -> Choice:
        """Choose the best backend that works here. `failed` holds the reason of each that must not be tried.

        Raises ValueError when `config` names a backend that does not exist.
        """
        if config.backend not in (AUTO, *self._backends):
            expected = ", ".join((AUTO, *self._backends))
            raise ValueError(f"backend is {config.backend!r}; expected one of {expected}")
        names = self._backends if config.backend == AUTO else (config.backend, Eager.name)
        refused = []
        for name in dict.fromkeys(names):
            why = (failed or {}).get(name) or self._backends[name].why_not(target, store, config)
            if why is None:
                return Choice(self._backends[name], tuple(refused))
            refused.append((name, why))
        return Choice(None, tuple(refused))

    def failures(self, target: Target, config: Config) -> dict[str, str]:
        """Reasons by backend why the code of `target` could not be made; the caller adds to it.

        It holds for every model of the architecture: base and refiner take turns, and each would try again.
        """
        return self._failures.setdefault((config, target.key), {})

    def forget_failures(self) -> None:
        """Let everything that failed be tried again."""
        self._failures.clear()

    def cancel(self) -> None:
        """Stop every job, also those that no UNet waits for."""
        for backend in self._backends.values():
            backend.cancel()
