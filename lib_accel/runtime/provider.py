"""Where compiled units come from: the choice of a backend, its job, and what failed."""

from __future__ import annotations

import contextlib
import math
import time
from collections import ChainMap
from collections.abc import Mapping

import torch

from ..compile.backends.fetching import FetchJob
from ..compile.jobs import CompiledUnits, Job, stop
from ..compile.session import CANCELLED, Backend, Choice, Session
from ..compile.target import Target
from ..config import Config
from ..errors import AccelError, ArtifactRejected, CompileFailed, NoRoom, StoreError
from ..store.exchange.shared import store_of

NO_BACKEND = "none"

FETCH_AGAIN_S = 60.0
"""After so long, where nothing may be compiled, a remote store that failed is asked again."""


class Provider:
    """Finds the compiled units of a target in the store, or has them made in the background.

    `units` is what may serve now: complete for the target, or empty. What serves goes on serving
    until its successor is there; where nothing does, what is made within seconds serves meanwhile.
    Raises ValueError from `prepare` when the configuration names a backend that does not exist.
    """

    def __init__(self, config: Config, session: Session):
        self._config, self._session = config, session
        self._store = store_of(config)
        self.units: CompiledUnits = {}
        self._made_by = ""  # the backend of `units`
        self.compiles, self.compile_failures, self.compile_seconds = 0, 0, 0.0
        self.job: Job | None = None
        self._stand_in: tuple[Job, str] | None = None  # and the name of its backend
        self._fetching: FetchJob | None = None  # the last one, ended or not
        self._fetch_again_at = math.inf
        self._target: Target | None = None
        self._choice: Choice | None = None
        self._failed: dict[str, str] = {}  # by backend: failures of this network alone
        self._discarded: dict[str, str] = {}  # by key: why an artifact was removed from the store
        self._loaded_bytes: int | None = None

    # -- getting units

    def prepare(self, target: Target) -> None:
        """Load the units of `target`, else start making them; wait only where the config says so.

        While a job for the same target is running, nothing is done. Asked again, it looks again for
        something better than what serves.
        """
        if self._target is None or self._target.key != target.key:
            stop(self.jobs)
            self.job, self.units, self._target = None, {}, target
        if self.job is not None and not self.job.cancelled:
            return
        self.job = self._stand_in = None
        self._forget_what_was_imported_since(target)
        if self._begin_fetching(target):
            return
        while True:
            self._choice = self._session.choose(target, self._store, self._config, self.failures)
            backend = self._choice.backend
            if backend is None:
                return
            if (made := self._make(backend, target)) is None:
                continue
            if isinstance(made, Job):
                self.job = made
                if self._config.blocking:
                    made.wait()
                    self.collect()
                elif not self.units:
                    self._serve_meanwhile(target, backend.name)
            else:
                self._serve(made, backend.name)
                if not self.units and CANCELLED in self.failures.values():
                    self._serve(*self._session.left(target))  # that needs no compiler
            return

    def _make(self, backend: Backend, target: Target) -> CompiledUnits | Job | None:
        """Return what a backend has or begins to make; None where its code must not serve."""
        try:
            return backend.make(target, self._store)
        except (ArtifactRejected, StoreError) as error:
            self._reject(error, backend.name)
            return None

    def _serve_meanwhile(self, target: Target, chosen: str) -> None:
        """Serve what a changed setting has ended, else what is made sooner than by `chosen`."""
        self._serve(*self._session.left(target))
        given = target, self._store, self._config, self.failures
        while not self.units and (backend := self._session.stand_in(*given, chosen)):
            if (made := self._make(backend, target)) is None:
                continue
            if isinstance(made, Job):
                self._stand_in = made, backend.name
            else:
                self._serve(made, backend.name)
            return

    def _begin_fetching(self, target: Target) -> bool:
        """Return whether code is being fetched, which may make everything else needless."""
        self._fetching = fetching = self._session.fetch(target, self._store, self._config)
        self._fetch_again_at = math.inf
        if fetching is None or fetching.cancelled:
            return False
        if self._config.blocking:
            fetching.wait()
        if fetching.done:
            if fetching.problem and not self._config.compile:
                self._fetch_again_at = time.monotonic() + FETCH_AGAIN_S
            return False
        self._choice = self._session.choose(target, self._store, self._config, self.failures)
        self.job = fetching
        if not self.units:
            self._serve(*self._session.left(target))
        return True

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that `units` were made for; None before `prepare`."""
        return self._target.dtype if self._target else None

    @property
    def prepared(self) -> bool:
        """Whether a backend was chosen, so that another target is prepared as well."""
        return self._choice is not None

    @property
    def jobs(self) -> list[Job]:
        """What is being made: by the chosen backend, and what serves until that is ready."""
        job, stand_in = self.job, self._stand_in  # read once: another thread may clear them
        return [job for job in (job, stand_in and stand_in[0]) if job is not None]

    @property
    def finished(self) -> bool:
        """Whether a job has ended, or is due again, and `collect` has something to do."""
        jobs = self.jobs
        return any(job.done for job in jobs) if jobs else time.monotonic() > self._fetch_again_at

    def collect(self) -> None:
        """Take over what a finished job has made, or remember why it failed and prepare again."""
        if self._stand_in is not None and self._stand_in[0].done:
            (made, name), self._stand_in = self._stand_in, None
            if not (made.cancelled or self.units):
                self._take(made, name)
        if not self.finished:
            return
        job, self.job = self.job, None
        if job is None:
            assert self._target is not None
            self._session.forget_fetches()
            self.prepare(self._target)
            return
        # it is cancelled by the user, or by another model that shared it
        if not (job.cancelled or isinstance(job, FetchJob)):
            assert self._choice is not None
            assert self._choice.backend is not None
            if self._take(job, self._choice.backend.name):
                return
        self.prepare(job.target)

    def _take(self, job: Job, made_by: str) -> bool:
        """Serve what a job has made, or remember why it failed. Return whether it serves."""
        compiled = job.take_count()
        self.compiles += compiled
        self.compile_seconds += job.progress().elapsed_s if compiled else 0.0
        try:
            self._serve(job.result(), made_by)
            return True
        except (CompileFailed, ArtifactRejected, StoreError) as error:
            self.compile_failures += 1
            passing = isinstance(error, (NoRoom, StoreError))
            if not compiled and getattr(error, "key", None):  # it was there, and came unchecked
                self._reject(error, made_by)
            else:
                (self._failed if passing else self._lasting)[made_by] = str(error)
            return False

    def drop(self, reason: str) -> None:
        """Stop serving units that failed, and do not try their backend again for this network."""
        superseded, self._failed[self.backend] = self.is_superseded, reason
        self.units = {}
        assert self._choice is not None
        assert self._target is not None
        self._session.leave(self._target, {}, "")
        if not superseded:
            self._choice = Choice(self._choice.backend, tuple(self.failures.items()))

    def give_up_memory(self) -> bool:
        """End what compiles on the device until there is room again; return whether any did."""
        job = self.job  # read once: another thread may clear it
        return job is not None and job.give_up_memory()

    def close(self, keep_compiling: bool) -> None:
        """Leave the units to the next network, with `keep_compiling` the job too; forget both."""
        if not keep_compiling:
            stop(self.jobs)
        if self._target is not None and self.units:
            self._session.leave(self._target, self.units, self._made_by)
        self.job = self._stand_in = self._choice = self._target = None
        self.units, self._fetch_again_at = {}, math.inf

    def _serve(self, units: CompiledUnits, made_by: str) -> None:
        if not units:
            return
        self.units, self._made_by, self._loaded_bytes = units, made_by, None
        self._discarded.clear()
        with contextlib.suppress(StoreError):  # shown only; the units serve without the store
            self._loaded_bytes = self.kept_bytes

    def _reject(self, error: AccelError, made_by: str) -> None:
        """Remove a refused artifact, once, to have it made again; else give up the backend."""
        key = getattr(error, "key", None)
        if key is not None and key not in self._discarded and not self._store.readonly:
            try:
                self._store.discard(key, str(error))
                self._discarded[key] = str(error)
                return
            except AccelError as failure:
                error = failure
        self._failed[made_by] = str(error)

    @property
    def channels_last(self) -> bool:
        """Whether the units that serve read weights of convolutions channels-last on a GPU."""
        return not self.units or self._session.backend(self._made_by).channels_last

    # -- failures

    @property
    def _lasting(self) -> dict[str, str]:
        """Failures that hold for every network with this target: the code could not be made."""
        assert self._target is not None
        return self._session.failures(self._target, self._config)

    @property
    def failures(self) -> Mapping[str, str]:
        """Backends that are not tried, with the reason of each."""
        if self._target is None:
            return self._failed
        return ChainMap(self._failed, self._lasting)

    def _forget_what_was_imported_since(self, target: Target) -> None:
        for name in list(self._lasting):
            with contextlib.suppress(StoreError):  # the backend itself reports it
                if self._session.backend(name).kept_bytes(target, self._store) is not None:
                    del self._lasting[name]

    # -- status

    @property
    def backend(self) -> str:
        """Name of the backend that serves or will; "none" where there is no choice."""
        if self.units:
            return self._made_by
        chosen = self._choice.backend if self._choice else None
        return chosen.name if chosen else NO_BACKEND

    @property
    def reason(self) -> str | None:
        """Why no better backend serves, and which artifacts were removed; or None."""
        refused = dict(self._choice.refused) if self._choice else {}
        if self.job is not None and not self.units:
            refused |= self.failures  # of what would serve meanwhile
        found = [*self._discarded.values(), *(f"{name}: {why}" for name, why in refused.items())]
        if self._fetching is not None and self._fetching.problem and not self.units:
            found.append(self._fetching.problem)
        return "; ".join(found) or None

    @property
    def is_superseded(self) -> bool:
        """Whether another backend than the chosen one serves, until that is ready."""
        chosen = self._choice.backend if self._choice else None
        return bool(self.units and chosen and chosen.name != self._made_by)

    @property
    def kept_bytes(self) -> int | None:
        """Size in the store of the units that serve, None where the store does not have them all.

        Raises StoreError where the store cannot be read.
        """
        if not self.units or self._target is None:
            return None
        return self._session.backend(self._made_by).kept_bytes(self._target, self._store)

    @property
    def artifact(self) -> dict[str, object] | None:
        """Key and size of the stored code that serves, as of when it was loaded."""
        if not (self.units and self._target) or self._loaded_bytes is None:
            return None
        return {"key": self._target.key, "bytes": self._loaded_bytes}
