"""Fetches stored code from the remote store, before a backend is asked to make it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import AccelError, ArtifactRejected
from ...store.exchange.shared import SharedStore
from ..jobs import CompiledUnits, Job, Parts
from ..target import Target

THREADS = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """What several jobs have done."""

    hits: int
    misses: int
    failures: int
    seconds: float


class FetchJob(Job):
    """Fetches the artifacts in `keys`; has no result but what `store` holds afterwards.

    It ends after `limit_s` seconds at the latest. `problem` then says why some could not be had,
    other than that they are not there; `fetched` counts those that came, `absent` those that do not
    exist.
    """

    def __init__(self, target: Target, store: SharedStore, keys: Iterable[str], limit_s: float):
        super().__init__(f"accel-fetch-{target.key[:8]}", target)
        self.problem: str | None = None
        self.fetched = self.absent = 0
        self._store, self._keys, self._limit_s = store, [*keys], limit_s
        self.threads: list[threading.Thread] = []  # a server may let them wait for ever

    @property
    def is_asking(self) -> bool:
        """Whether it runs, or the remote store still lets a thread of it wait."""
        return not self.done or any(thread.is_alive() for thread in self.threads)

    def work(self) -> CompiledUnits:
        """Fetch what is missing. Raises CompileFailed after `cancel`."""
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        answers: queue.SimpleQueue[tuple[str, AccelError | bool]] = queue.SimpleQueue()
        for key in self._keys:
            waiting.put(key)
        self.parts = parts = Parts(dict.fromkeys(self._keys, 1.0), THREADS)
        left, began, url = set(self._keys), time.monotonic(), self._store.remote.shown
        for _ in range(min(THREADS, len(left))):  # a hung one must not keep the process alive
            given = waiting, answers
            self.threads.append(threading.Thread(target=self._fetch, args=given, daemon=True))
            self.threads[-1].start()
        try:
            while left and self.problem is None:
                self.report(f"fetching compiled code from {url}")
                if time.monotonic() - began > self._limit_s:
                    self.problem = f"{url} did not answer within {self._limit_s:.0f} s"
                    break
                try:
                    key, answer = answers.get(timeout=0.1)
                except queue.Empty:
                    continue
                left.discard(key)
                parts.finish(key)
                if isinstance(answer, ArtifactRejected):
                    _log.warning("%s", answer)
                elif isinstance(answer, AccelError):
                    self.problem = str(answer)
                else:
                    self.fetched += answer
                    self.absent += not answer
        finally:
            _empty(waiting)
        if self.fetched:
            self._store.make_room(self._keys)
        if self.problem:
            _log.warning("%s", self.problem)
        return {}

    def _fetch(
        self,
        waiting: queue.SimpleQueue[str],
        answers: queue.SimpleQueue[tuple[str, AccelError | bool]],
    ) -> None:
        while True:
            try:
                key = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answers.put((key, self._store.fetch(key)))
            except AccelError as error:
                answers.put((key, error))


def missing(store: SharedStore, keys: Iterable[str]) -> list[str]:
    """Return the keys that the folder of `store` has no usable artifact of. Raises StoreError."""
    found = {key: store.entry(key) for key in keys}
    return [key for key, entry in found.items() if entry is None or entry.problem]


def _empty(waiting: queue.SimpleQueue[str]) -> None:
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return
