"""Who may have written an artifact: nobody but its user, because artifacts are native code.

On POSIX the store's root, an artifact, its folders and its files must belong to the user or root,
and nobody else may be able to write them. No parent folder may be writable by everyone unless it is
sticky. Group-writable parents and parents of other users are accepted: a umask of 002 and container
volumes make them common. Their owners can put another folder in the place of the root any time.
What they put there is refused by its signature (`signing.py`), and lest they do it between the
check and the loading, code from below such a parent is copied to a private folder while it is
checked, and the copy is loaded (`closed_to_others`, `ArtifactStore.place`).

On Windows the standard library cannot read an access list, so nothing of this is checked, and the
signature alone says whose code it is. The user's profile, where the default store lies, is closed
to other users by Windows; code from any other folder is copied before it is loaded.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import NoReturn

from ..errors import ArtifactRejected

_UNMAPPED = 65534
"""Whose files seem to be that a container without root sees of its host: root's, such as /tmp."""


def require_private(path: Path, folder: bool) -> None:
    """Raise ArtifactRejected when someone else could have written `path`; follow no links."""
    info = path.lstat()
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(info.st_mode):
        _refuse(path, f"is not a real {'folder' if folder else 'file'}")
    if sys.platform == "win32":
        return
    if info.st_uid not in (0, os.geteuid()):
        _refuse(path, f"belongs to another user (id {info.st_uid}, you are {os.geteuid()})")
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        _refuse(path, f"is writable by others (mode {stat.S_IMODE(info.st_mode):04o})")


def require_private_root(root: Path) -> None:
    """Raise ArtifactRejected when someone else could put an artifact into the store `root`."""
    require_private(root, folder=True)
    if sys.platform == "win32":
        return
    for parent in root.parents:
        mode = parent.stat().st_mode
        if everyone_can_replace(mode):
            octal = f"{stat.S_IMODE(mode):04o}"
            why = f"is writable by everyone (mode {octal}) and holds the store {root}"
            _refuse(parent, why, remedy="+t")


def everyone_can_replace(mode: int) -> bool:
    """Return whether everyone can rename what lies in a folder with this `st_mode`."""
    return bool(mode & stat.S_IWOTH and not mode & stat.S_ISVTX)


def require_closed(place: Path) -> None:
    """Raise ArtifactRejected when someone else could exchange what lies in the folder `place`."""
    for folder in () if sys.platform == "win32" else (place, *place.parents):
        info = folder.stat()
        if _others_write(info) or info.st_uid not in (0, os.geteuid(), _UNMAPPED):
            who = f"owner {info.st_uid}, mode {stat.S_IMODE(info.st_mode):04o}"
            why = f"lets others exchange what lies in the temporary folder {place} ({who})"
            _refuse(folder, why, remedy="+t")


def closed_to_others(root: Path) -> bool:
    """Return whether nobody else can exchange the store `root`, which is private, or a parent."""
    if sys.platform == "win32":
        home = os.path.expanduser("~")  # noqa: PTH111  (never raises)
        return root.is_relative_to(os.path.realpath(home))
    return all(map(_is_closed, root.parents))


def _is_closed(parent: Path) -> bool:
    info = parent.stat()
    return info.st_uid in (0, os.geteuid()) and not _others_write(info)


def _others_write(folder: os.stat_result) -> bool:
    """Return whether others than its owner can rename what lies in a folder."""
    writable = folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return bool(writable and not folder.st_mode & stat.S_ISVTX)


def _refuse(path: Path, why: str, remedy: str = "go-w") -> NoReturn:
    raise ArtifactRejected(
        f"{path} {why}, so others could plant code there. Artifacts are native code: expected a "
        f"real file or folder that is yours or root's and that nobody else can write. "
        f"Run: chmod {remedy} '{path}' (and chown it if needed), or choose another folder."
    )
