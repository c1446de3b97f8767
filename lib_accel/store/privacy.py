"""Who may have written an artifact: nobody but its user, because artifacts are native code.

On POSIX the store's root, an artifact, its folders and its files must belong to the user or root,
and nobody else may be able to write them. No parent folder may be writable by everyone unless it is
sticky. Group-writable parents and parents of other users are accepted: a umask of 002 and container
volumes make them common. Their owners could move the root away, not put a file of theirs into it.

On Windows the standard library cannot read an access list, and nothing is checked: the default
store lies in the user's profile, which Windows closes to other users; who names another folder
answers for it.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import NoReturn

from ..errors import ArtifactRejected


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
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            octal = f"{stat.S_IMODE(mode):04o}"
            why = f"is writable by everyone (mode {octal}) and holds the store {root}"
            _refuse(parent, why, remedy="+t")


def _refuse(path: Path, why: str, remedy: str = "go-w") -> NoReturn:
    raise ArtifactRejected(
        f"{path} {why}, so others could plant code there. Artifacts are native code: expected a "
        f"real file or folder that is yours or root's and that nobody else can write. "
        f"Run: chmod {remedy} '{path}' (and chown it if needed), or choose another folder."
    )
