"""Backends, the choice among them, and the session that accelerated UNets share them through."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ..config import AUTO, Config
from ..errors import StoreError
from ..store.exchange.shared import SharedStore
from ..store.store import ArtifactStore
from .backends.aoti.backend import Aoti
from .backends.eager import Eager
from .backends.fetching import Fetched, FetchJob, missing
from .backends.jit import Jit
from .backends.kernels.backend import FusedKernels
from .backends.tensorrt import engines
from .backends.tensorrt.backend import TensorRT
from .jobs import CompiledUnits, Job, stop
from .machine import Machine
from .speeds import Speeds
from .target import Target, of_torch


class Backend(Protocol):
    """One way to make fast code for a target. It keeps the code it has loaded or made."""

    name: str
    channels_last: bool  # the layout in which units read weights of convolutions on a GPU
    optional: bool  # the user has to install something: `auto` does without it and says nothing
    cuda_only: bool  # on other devices `auto` does without it and says nothing
    quick: bool  # made within seconds: `auto` lets it serve while a better one is being made

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        """Return why this backend cannot serve `target` and what to do; None where it can."""
        ...

    def make(self, target: Target, store: ArtifactStore) -> CompiledUnits | Job:
        """Return the units of `target` where they exist, else a started job that makes them.

        Called after `why_not` has returned None. Raises ArtifactRejected for stored code that must
        not serve, StoreError where the store cannot be read.
        """
        ...

    def kept_bytes(self, target: Target, store: ArtifactStore) -> int | None:
        """Return the bytes that the units of `target` take in `store`; None unless it has them all.

        Raises StoreError where the store cannot be read.
        """
        ...

    def keys(self, target: Target) -> Iterable[str]:
        """Return the keys of the stored artifacts that serve `target`; none where it keeps none."""
        ...

    def cancel(self) -> list[Target]:
        """Stop every job of this backend. Return what they were for."""
        ...


BACKENDS: tuple[type[Backend], ...] = (TensorRT, Aoti, Jit, FusedKernels, Eager)
"""Every backend, best first until more was measured. A new one is listed here and nowhere else."""


def of_machine(machine: Machine) -> dict[str, dict[str, Any]]:
    """Return what recipes of stored code for this machine share, by what made the code."""
    return {"torch": of_torch(machine), engines.MODULE: engines.of_machine(machine)}


CANCELLED = "compiling was cancelled; Build now starts it again"
"""Why a backend is not tried: the user has stopped it. Nor is another one that would compile."""


@dataclass(frozen=True)
class Choice:
    """The backend that serves, None where none can, and why each better one does not."""

    backend: Backend | None
    refused: tuple[tuple[str, str], ...]  # (name, reason), best first

    @property
    def reason(self) -> str | None:
        """All reasons in one line for the user; None when the first choice serves."""
        return "; ".join(f"{name}: {why}" for name, why in self.refused) or None


class Session:
    """Owns what several accelerated UNets share: backends with their code and jobs, and failures.

    The host has one; whoever accelerates several UNets may make one. `theirs` names how a host with
    code of its own computes now, against which `speeds` are measured.
    """

    def __init__(self, theirs: Callable[[], str] | None = None) -> None:
        self.speeds = Speeds(theirs)
        self._backends: dict[str, Backend] = {kind.name: kind() for kind in BACKENDS}
        self._failures: dict[tuple[Config, str], dict[str, str]] = {}
        self._fetches: dict[tuple[Path, str], FetchJob] = {}
        self._all_fetches: list[FetchJob] = []
        self._fetching = threading.Lock()  # the host begins before there is a UNet
        self._left: dict[tuple[str, str], tuple[CompiledUnits, str]] = {}
        # on which CUDA graphs are recorded: libraries keep a workspace for each, for good
        self.streams: dict[torch.device, torch.cuda.Stream] = {}

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
        """Return the best backend that can serve `target`: of all, or the one in `config` or Eager.

        Best is what was measured to be fastest; what was not measured is in the order of BACKENDS.
        `failed` holds, by name, why a backend must not be tried. Raises ValueError where `config`
        names a backend that does not exist.
        """
        if config.backend not in (AUTO, *self._backends):
            expected = ", ".join((AUTO, *self._backends))
            raise ValueError(f"backend is {config.backend!r}; expected one of {expected}")
        names = [config.backend, Eager.name]
        if config.backend == AUTO:
            names = self.speeds.ranked(target, self._backends)
        refused, failed = {}, failed or {}
        made = replace(config, compile=config.compile and CANCELLED not in failed.values())
        for name in dict.fromkeys(names):
            backend = self._backends[name]
            failure = failed.get(name)
            why = failure or backend.why_not(target, store, config)
            if why is not None:
                elsewhere = backend.cuda_only and target.machine.device_type != "cuda"
                if failure or config.backend != AUTO or not (backend.optional or elsewhere):
                    refused[name] = why
            elif made == config or backend.why_not(target, store, made) is None:
                slower = self._slower(target, name) if config.backend == AUTO else {}
                return Choice(backend, tuple({**slower, **refused}.items()))
        return Choice(None, tuple(refused.items()))

    def stand_in(
        self,
        target: Target,
        store: ArtifactStore,
        config: Config,
        failed: Mapping[str, str],
        chosen: str,
    ) -> Backend | None:
        """Return what serves `target` while the `chosen` backend is making its code, or None.

        That is a quick backend that comes after it and before `Eager`. Where the user has named
        one, nothing stands in for it. The other arguments are as in `choose`.
        """
        if config.backend != AUTO:
            return None
        ranked = self.speeds.ranked(target, self._backends)
        after = itertools.islice(ranked, ranked.index(chosen) + 1, None)
        for name in itertools.takewhile(Eager.name.__ne__, after):
            backend = self._backends[name]
            if backend.quick and name not in failed and not backend.why_not(target, store, config):
                return backend
        return None

    def _slower(self, target: Target, chosen: str) -> dict[str, str]:
        """Return why backends that are listed before `chosen` come after it, by name."""
        before = itertools.takewhile(chosen.__ne__, self._backends)
        found = {name: self.speeds.why_after(target, name, chosen) for name in before}
        return {name: why for name, why in found.items() if why}

    def failures(self, target: Target, config: Config) -> dict[str, str]:
        """Return the shared reasons, by backend, why the units of `target` could not be made.

        Callers add and delete entries. All UNets of an architecture share them, so that none
        tries again what has failed.
        """
        return self._failures.setdefault((config, target.key), {})

    def fetch(self, target: Target, store: ArtifactStore, config: Config) -> FetchJob | None:
        """Return the job that fetches the code of `target` from the remote store, ended or not.

        It is started once, until failures are forgotten. None where nothing is missing, or there is
        no remote store.
        """
        if not isinstance(store, SharedStore):
            return None
        with self._fetching:
            job = self._fetches.get((store.root, target.key))
            by_user = CANCELLED in self.failures(target, config).values()
            if job is not None and (by_user or not job.cancelled):
                return job
            named = [b for n, b in self._backends.items() if config.backend in (AUTO, n)]
            keys = dict.fromkeys(key for each in named for key in each.keys(target))
            try:
                wanted = missing(store, keys)
            except StoreError:  # the backend says what is wrong with the folder
                return None
            if not wanted:
                return None
            job = FetchJob(target, store, wanted, config.fetch_s)
            self._fetches[store.root, target.key] = job
            self._all_fetches.append(job)
            job.start()
            return job

    def fetched(self) -> Fetched:
        """Return what all jobs together have fetched so far."""
        with self._fetching:
            jobs = list(self._all_fetches)
        return Fetched(
            sum(job.fetched for job in jobs),
            sum(job.absent for job in jobs),
            sum(job.problem is not None for job in jobs),
            sum(job.progress().elapsed_s for job in jobs),
        )

    def leave(self, target: Target, units: CompiledUnits, made_by: str) -> None:
        """Keep the units that serve `target`, by the name of their backend, for whoever is next.

        They hold no weights, and their backend keeps most of them anyway.
        """
        self._left[target.key, str(target.device)] = units, made_by

    def left(self, target: Target) -> tuple[CompiledUnits, str]:
        """Return what was last left for `target`; no units where nothing was."""
        return self._left.get((target.key, str(target.device)), ({}, ""))

    def forget_failures(self) -> None:
        """Let whatever failed be tried again."""
        self._failures.clear()
        self.forget_fetches()

    def forget_fetches(self) -> None:
        """Let the remote store be asked again, but for what it has yet to answer."""
        with self._fetching:
            self._fetches = {name: job for name, job in self._fetches.items() if job.is_asking}

    def cancel(self, config: Config | None = None) -> bool:
        """Stop every job, also those that no UNet waits for. Return whether there was any.

        With `config`, what was to be made is not begun again for it until `forget_failures`.
        """
        stopped = [(name, backend.cancel()) for name, backend in self._backends.items()]
        stopped.append((Aoti.name, stop(self._fetches.values())))
        for name, targets in stopped:
            for target in targets:
                if config:
                    self.failures(target, config)[name] = CANCELLED
        return any(targets for _, targets in stopped)
