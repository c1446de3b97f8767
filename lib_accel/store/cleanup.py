"""Removing: single artifacts, what killed processes left, and what exceeds the store's limit.

Only what has exactly the look of the store's own things is removed, and only from a folder that
bears the store's mark: a file called MARK.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from ..errors import StoreError
from .artifact import Entry
from .files import ARTIFACT_KEY, bytes_in, create, delete, os_errors, rename
from .locks import LOCKS, TEMP, LockBusy, hold
from .manifest import MANIFEST
from .privacy import MARK, require_private_root

_MARK_TEXT = b"Compiled code of sd-webui-accel. What is deleted is compiled again when needed.\n"

_TRASH = ".trash-"
_HIDDEN = re.compile(rf"({re.escape(TEMP)}|{re.escape(_TRASH)})[0-9a-f]{{16}}")
_LOCK = re.compile(rf"{re.escape(TEMP)}[0-9a-f]{{16}}\.lock")
_ANYWHERE = {"lost+found", ".DS_Store", "desktop.ini", "Thumbs.db"}  # systems put them everywhere
_OLD_S = 3600.0
_log = logging.getLogger(__name__)


def require_store(root: Path) -> None:
    """Raise StoreError when the folder `root` has no mark and holds what no store holds."""
    if (root / MARK).is_file():
        return
    for path in root.iterdir():
        ours = path.name in (LOCKS, MARK) or _is_hidden(path) or is_artifact(path)
        if not ours and path.name not in _ANYWHERE and os.path.lexists(path):  # not just removed
            raise StoreError(
                f"{root} is no store of compiled code: it holds {path.name!r}. A store removes "
                "what was used longest ago, so other files must not lie there. Choose a new or "
                "empty folder."
            )


def claim(root: Path) -> None:
    """Mark the folder `root` as a store; raise StoreError when it holds what no store holds.

    A store of an earlier version, which bears no mark, is taken over. Raises ArtifactRejected where
    others can write there: they could have links lie where this process is about to write.
    """
    with os_errors(f"use the store {root}"):
        require_private_root(root)
        require_store(root)
        with contextlib.suppress(FileExistsError), create(root / MARK) as stream:
            stream.write(_MARK_TEXT)


def is_artifact(path: Path) -> bool:
    """Return whether `path` is a real folder with the name of an artifact and with a manifest."""
    named = ARTIFACT_KEY.fullmatch(path.name) is not None
    there = os.path.isfile(path / MANIFEST)  # noqa: PTH113  (raises nothing in a closed folder)
    return named and there and not path.is_symlink()


def trash_name() -> str:
    """Return a name for what is being removed; `clean` removes what is left of that name."""
    return f"{_TRASH}{secrets.token_hex(8)}"


def remove(root: Path, path: Path, patience_s: float = 12.8) -> int:
    """Remove an artifact of the store `root`; return its bytes, 0 when it was gone.

    It is hidden by one rename first, which needs no space, and then deleted. Raises StoreError
    where something else has its name.
    """
    trash = root / trash_name()
    try:
        size = bytes_in(path)
        if not is_artifact(path):
            path.lstat()  # gone by now?
            raise StoreError(
                f"{path} was not removed: it is no folder with a {MANIFEST}, so it may be "
                "somebody's own. Expected an artifact. Look at it, and move it away."
            )
        rename(path, trash, patience_s)
    except FileNotFoundError:
        return 0
    delete(trash)
    return size


def clear(root: Path, entries: Iterable[Entry]) -> int:
    """Remove all `entries` and what killed processes left; return the bytes freed."""
    failed: list[StoreError] = []
    freed = 0
    for entry in entries:
        try:
            with os_errors(f"remove artifact {entry.key[:12]}"):
                freed += remove(root, entry.path)
        except StoreError as error:
            failed.append(error)
    freed += clean(root)
    if failed:
        raise StoreError(
            f"{len(failed)} artifacts could not be removed, {freed} bytes were freed. {failed[0]}"
        )
    return freed


def clean(root: Path) -> int:
    """Delete the unfinished files that killed processes left; return the bytes freed.

    A workspace whose lock is held belongs to a live process and stays.
    """
    freed = 0
    with os_errors(f"clean up {root}"), contextlib.suppress(FileNotFoundError):  # no store yet
        for path in filter(_is_hidden, [*root.iterdir()]):
            with contextlib.suppress(LockBusy, FileNotFoundError):
                if path.name.startswith(TEMP):
                    with hold(root, path.name, 0):
                        freed += bytes_in(path)
                        delete(path)
                    (root / LOCKS / f"{path.name}.lock").unlink()
                else:
                    freed += bytes_in(path)
                    delete(path)
        for lock in [*(root / LOCKS).iterdir()]:
            if _LOCK.fullmatch(lock.name):
                _remove_lock(root, lock)
    return freed


def _is_hidden(path: Path) -> bool:
    """Return whether `path` is a folder that is being written or removed, or was."""
    return bool(_HIDDEN.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def _remove_lock(root: Path, lock: Path) -> None:
    """Remove the lock of a workspace that was never made, as its process was killed before.

    It is old then: a process that has just made its lock has yet to take it.
    """
    with contextlib.suppress(LockBusy, FileNotFoundError):
        if time.time() - lock.stat().st_mtime > _OLD_S and not (root / lock.stem).exists():
            with hold(root, lock.stem, 0):
                pass
            lock.unlink()


def make_room(
    root: Path, entries: Callable[[], Iterable[Entry]], max_bytes: int, keep: Collection[str]
) -> None:
    """Remove what killed processes left, and what exceeds the limit; log it where that fails."""
    try:
        clean(root)
        evict(root, entries(), max_bytes, keep)
    except StoreError as error:  # what was put is in the store all the same
        _log.warning("The store %s was not cleaned up: %s", root, error)


def evict(root: Path, entries: Iterable[Entry], max_bytes: int, keep: Collection[str]) -> None:
    """Remove artifacts in the order of `entries` until the rest takes `max_bytes` or less.

    Artifacts in `keep`, locked ones and those that cannot be removed stay.
    """
    entries = [entry for entry in entries if is_artifact(entry.path)]
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
