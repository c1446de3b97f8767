"""A private folder for files that end with this process, such as a copy of code that is loaded.

Its name is random, so nobody can take it beforehand. A locked file in it shows that its owner
lives: whoever makes a folder later removes those of the dead.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from ..errors import ArtifactRejected
from .privacy import OTHER_TEMP, require_closed, require_private

_PREFIX, _LOCK = "accel-private-", "lock"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")  # as mkdtemp makes them

_YOUNG_S = 60.0
"""A folder may be this old before it counts as left: its owner makes it first, then locks it."""


def private_folder() -> Path:
    """Return a folder (0700) of this process below the temporary folder, made at first use.

    It is removed at exit; those that dead processes of this user left are removed when it is made.
    Another is made where the system has cleaned it away: its name is known by then, so whatever
    bears it may be somebody else's.
    Raises OSError where it cannot be made, ArtifactRejected where other users could replace it.
    """
    folder = _folder_of(os.getpid())
    try:
        require_private(folder, folder=True)
    except (OSError, ArtifactRejected):
        _folder_of.cache_clear()
        return _folder_of(os.getpid())
    return folder


def temporary_folder() -> Path:
    """Return the folder for temporary files, without links.

    Raises OSError where there is none, ArtifactRejected where other users could replace what lies
    in it.
    """
    temporary = Path(os.path.realpath(tempfile.gettempdir()))
    require_closed(temporary)
    return temporary


@functools.cache
def _folder_of(pid: int) -> Path:
    """Make the folder of this process. `pid` is its id: a forked child gets a folder of its own."""
    temporary = temporary_folder()
    _remove_leftovers(temporary)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=temporary))
    lock = (folder / _LOCK).open("wb")
    atexit.register(_remove, pid, folder, lock)
    _try_lock(lock)  # where that is impossible, nobody else finds it unlocked either
    require_private(folder, folder=True, remedy=OTHER_TEMP)
    return folder


def _remove(pid: int, folder: Path, lock: IO[bytes]) -> None:
    if os.getpid() == pid:  # a forked child calls this as well
        lock.close()  # Windows deletes no open file, and no library that this process has loaded
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(temporary: Path) -> None:
    for folder in temporary.glob(f"{_PREFIX}*"):
        try:
            if not (_NAME.fullmatch(folder.name) and _may_be_left(folder)):
                continue
            with (folder / _LOCK).open("ab") as lock:
                dead = _try_lock(lock)
        except OSError:  # another process removes it, or made it unreadable
            continue
        if dead:
            shutil.rmtree(folder, ignore_errors=True)


def _may_be_left(folder: Path) -> bool:
    """Whether it is a real folder, this user's own, and not of this very moment."""
    info = folder.lstat()
    own = sys.platform == "win32" or info.st_uid == os.geteuid()
    return own and stat.S_ISDIR(info.st_mode) and time.time() - info.st_mtime > _YOUNG_S


def _try_lock(file: IO[bytes]) -> bool:
    """Lock the file until it is closed or its process ends; return whether it is locked now."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has locked it, or the file system knows no locks
        return False
    return True
