"""Removing: single artifacts, what killed processes left, and what exceeds the store's limit."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path

from ..errors import StoreError
from .artifact import Entry
from .files import bytes_in, delete, os_errors, rename
from .locks import LOCKS, TEMP, LockBusy, hold

_TRASH = ".trash-"
_log = logging.getLogger(__name__)


def remove(root: Path, path: Path, patience_s: float = 12.8) -> int:
    """Remove an artifact of the store `root`; return its bytes, 0 when it was gone.

    It is hidden by one rename first, which needs no space, and then deleted.
    """
    trash = root / f"{_TRASH}{secrets.token_hex(8)}"
    try:
        size = bytes_in(path)
        rename(path, trash, patience_s)
    except FileNotFoundError:
        return 0
    delete(trash)
    return size


def clean(root: Path) -> int:
    """Delete the unfinished files that killed processes left; return the bytes freed.

    A workspace whose lock is held belongs to a live process and stays.
    """
    freed = 0
    with os_errors(f"clean up {root}"), contextlib.suppress(FileNotFoundError):  # no store yet
        for path in [*root.glob(f"{TEMP}*")]:
            with contextlib.suppress(LockBusy, FileNotFoundError):
                with hold(root, path.name, 0):
                    freed += bytes_in(path)
                    delete(path)
                (root / LOCKS / f"{path.name}.lock").unlink()
        for path in [*root.glob(f"{_TRASH}*")]:
            with contextlib.suppress(FileNotFoundError):
                freed += bytes_in(path)
                delete(path)
    return freed


def evict(root: Path, entries: Iterable[Entry], max_bytes: int, keep: Collection[str]) -> None:
    """Remove artifacts in the order of `entries` until the rest takes `max_bytes` or less.

    Artifacts in `keep`, locked ones and those that cannot be removed stay.
    """
    entries = list(entries)
    total = sum(entry.bytes for entry in entries)
    failed: StoreError | None = None
    for entry in entries:
        if total <= max_bytes:
            break
        if entry.key in keep:
            continue
        try:
            with os_errors(f"evict artifact {entry.key[:12]}"), hold(root, entry.key, 0):
                # no patience: Windows removes no library that a process has loaded
                remove(root, entry.path, patience_s=0)
                total -= entry.bytes
        except LockBusy:
            continue
        except StoreError as error:
            failed = error
    if failed and total > max_bytes:
        _log.warning("The store %s is above its limit of %d bytes: %s", root, max_bytes, failed)
