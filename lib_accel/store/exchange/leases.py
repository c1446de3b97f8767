"""Leases in a remote store: one machine compiles an artifact, the others wait for it.

A lease is an object `<key>.lease.<n>` that its holder makes, which only one can, and rewrites every
few seconds. Whoever sees it unchanged for long enough, by a clock of its own that never jumps,
takes its holder for dead, and may make number n + 1. So machines need not agree on the time. A
lease that was given back says so. When the artifact is there, its leases are removed.

Two may compile the same where a holder is slow rather than dead; then the first to publish wins.
A remote store that fails gives leases to everybody: nobody waits for it. Nor does anybody wait for
ever for a holder that never ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
from dataclasses import dataclass

from ...errors import StoreError
from .remote import Remote

EXPIRY_S, RENEWAL_S = 60.0, 10.0
PATIENCE_S = 1800.0
"""No unit takes so long: who still holds its lease will never publish it."""
DOWN_S = 60.0
"""A remote store that failed is left alone for so long."""

MOST = 200
"""So many machines do not die over one unit."""

_GIVEN_BACK = b"given back"
_log = logging.getLogger(__name__)


@dataclass
class _Held:
    name: str
    number: int
    count: int = 0


class Leases:
    """The leases that this process holds and has seen. It can be used from any thread."""

    def __init__(self, remote: Remote, expiry_s: float = EXPIRY_S, renewal_s: float = RENEWAL_S):
        self._remote, self._expiry_s, self._renewal_s = remote, expiry_s, renewal_s
        self._owner = secrets.token_hex(8)
        self._held: dict[str, _Held] = {}  # by key; an entry without a name stands for no lease
        self._seen: dict[str, tuple[bytes, float]] = {}  # by name: what it held, and since when
        self._waited_since: dict[str, float] = {}  # by key
        self._lock = threading.Lock()  # never held while the remote store is asked
        self._writing = threading.Lock()  # nothing is renewed while it is given back
        self._renewing = False
        self._down_until = 0.0

    def take(self, key: str) -> bool:
        """Return whether this process holds the lease of `key` now, or may do without one.

        It does not wait.
        """
        now = time.monotonic()
        with self._lock:
            if key in self._held:
                return True
            waited = now - self._waited_since.setdefault(key, now)
        if now < self._down_until or waited > PATIENCE_S:
            self._hold(key, None)
            return True
        try:
            held = self._make(key)
        except StoreError as error:
            self._down_until = time.monotonic() + DOWN_S
            _log.warning("Nobody can be asked to wait for this machine. %s", error)
            held = _Held("", 0)
        if held is not None:
            self._hold(key, held)
        return held is not None

    def _make(self, key: str) -> _Held | None:
        """Make the next lease of `key`; return None where another machine holds the last one."""
        for number in range(MOST):
            name = f"{key}.lease.{number}"
            held = _Held(name, number)
            found = self._remote.read(name, most=4096)
            if found is None:
                if self._remote.write(name, self._text(held)):
                    return held
                found = self._remote.read(name, most=4096) or b""  # somebody was faster
            if found != _GIVEN_BACK and not self._is_dead(name, found):
                return None
        raise StoreError(
            f"The store {self._remote.shown} has {MOST} leases of artifact {key[:12]}. Expected "
            "some. Remove them there."
        )

    def _is_dead(self, name: str, found: bytes) -> bool:
        now = time.monotonic()
        with self._lock:
            before, since = self._seen.get(name, (None, now))
            if before != found:
                since = now
                self._seen[name] = found, now
            return now - since > self._expiry_s

    def _text(self, held: _Held) -> bytes:
        return json.dumps({"owner": self._owner, "renewed": held.count}).encode()

    def _hold(self, key: str, held: _Held | None) -> None:
        with self._lock:
            self._held[key] = held or _Held("", 0)
            self._waited_since.pop(key, None)
            if self._renewing:
                return
            self._renewing = True
        threading.Thread(target=self._renew, name="accel-leases", daemon=True).start()

    def _renew(self) -> None:
        while True:
            time.sleep(self._renewal_s)
            with self._lock:
                held = [each for each in self._held.values() if each.name]
                if not held:
                    self._renewing = False
                    return
            for each in held:
                each.count += 1
                with self._writing, contextlib.suppress(StoreError):  # it expires, then
                    if self._is_held(each):
                        self._remote.write(each.name, self._text(each), replace=True)

    def _is_held(self, held: _Held) -> bool:
        with self._lock:
            return any(each is held for each in self._held.values())

    def give_back(self, key: str, published: bool) -> None:
        """Let the next machine take the lease; where the artifact is `published`, remove it."""
        with self._lock:
            held = self._held.pop(key, None)
        if held is None or not held.name:
            return
        with self._writing, contextlib.suppress(StoreError):  # it expires, then
            if not published:
                self._remote.write(held.name, _GIVEN_BACK, replace=True)
                return
            for number in range(held.number, -1, -1):
                self._remote.remove(f"{key}.lease.{number}")

    @property
    def keys(self) -> list[str]:
        """The keys whose leases are held."""
        with self._lock:
            return list(self._held)
