"""Locks of a store, held across processes. The system releases one when its holder dies."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from ..errors import StoreError
from .files import os_errors
from .privacy import closed_to_others

LOCKS, TEMP = ".locks", ".tmp-"


class LockBusy(StoreError):
    """Another process (or thread) holds the lock."""


@contextlib.contextmanager
def hold(root: Path, name: str, timeout: float | None) -> Iterator[None]:
    """Hold the lock `name` of the store `root`.

    Raises LockBusy after `timeout` seconds (None: wait, 0: do not wait).
    """
    doing = f"lock {name[:12]}"
    unsupported = (
        f"{root} is on a file system without file locks. Expected a local disk. "
        "Choose another folder for the store."
    )
    with _folder_of_locks(root, doing) as folder:
        lock = FileLock(str(folder / f"{name}.lock"))
        with os_errors(doing):
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
            if isinstance(lock, SoftFileLock):  # filelock's fallback: would outlive a killed holder
                raise StoreError(unsupported)
            yield
        finally:
            lock.release()


@contextlib.contextmanager
def _folder_of_locks(root: Path, doing: str) -> Iterator[Path]:
    """Yield the folder of the locks of the store `root`, by a name that nobody else can exchange.

    The owner of a folder above could put another in its place, with links for locks, and filelock
    before 3.20.1 empties the files that these lead to.
    """
    folder, descriptor = root / LOCKS, -1
    with os_errors(doing):
        folder.mkdir(mode=0o700, exist_ok=True)
        if sys.platform == "linux" and not closed_to_others(root):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    if descriptor == -1:
        yield folder
        return
    try:
        info = os.fstat(descriptor)
        if info.st_uid not in (0, os.geteuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StoreError(
                f"Others can write in {folder}. Expected a folder that you alone can write. "
                "Choose another folder for the store."
            )
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


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
