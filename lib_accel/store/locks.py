"""Locks of a store, held across processes. The system releases one when its holder dies."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from ..errors import StoreError
from .files import os_errors

LOCKS, TEMP = ".locks", ".tmp-"


class LockBusy(StoreError):
    """Another process (or thread) holds the lock."""


@contextlib.contextmanager
def hold(root: Path, name: str, timeout: float | None) -> Iterator[None]:
    """Hold the lock `name` of the store `root`.

    Raises LockBusy after `timeout` seconds (None: wait, 0: do not wait).
    """
    lock = FileLock(str(root / LOCKS / f"{name}.lock"))
    unsupported = (
        f"{root} is on a file system without file locks. Expected a local disk. "
        "Choose another folder for the store."
    )
    with os_errors(f"lock {name[:12]}"):
        (root / LOCKS).mkdir(mode=0o700, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if timeout is None else timeout)
        except Timeout as error:
            raise LockBusy(
                f"{name[:12]} is locked by another process, after waiting {timeout} s. "
                "Wait until it has finished, then retry."
            ) from error
        except NotImplementedError as error:
            raise StoreError(unsupported) from error
    try:
        if isinstance(lock, SoftFileLock):  # filelock's fallback: it would outlive a killed holder
            raise StoreError(unsupported)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """Make a private folder in `root` and remove it at the end.

    Its lock shows other processes that its owner lives.
    """
    name = f"{TEMP}{secrets.token_hex(8)}"
    work = root / name
    try:
        with hold(root, name, 0):
            try:
                work.mkdir(mode=0o700)
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)  # `clean` removes what stays
    finally:
        with contextlib.suppress(OSError):  # an empty file that nobody will ask for again
            (root / LOCKS / f"{name}.lock").unlink()
