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

MARK = ".accel-store"
"""The file that marks a folder as a store."""

OTHER_TEMP = "Set TMPDIR to a folder that only you can write, for example in your home."
_DELETE = "Delete it: what it held is made again."

_UNMAPPED = 65534
"""Whose files seem to be that a container without root sees of its host: root's, such as /tmp."""


def require_private(path: Path, folder: bool, remedy: str = _DELETE) -> None:
    """Raise ArtifactRejected when someone else could have written `path`; follow no links."""
    if why := _written_by_others(path, folder):
        _refuse(
            f"{path} {why}, so others could have put code there, which would run as you. {remedy}"
        )


def _written_by_others(path: Path, folder: bool) -> str | None:
    """Return how someone else could have written `path`, or None."""
    info = path.lstat()
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(info.st_mode):
        return f"is not a real {'folder' if folder else 'file'}"
    if sys.platform == "win32":
        return None
    if info.st_uid not in (0, os.geteuid()):
        return f"belongs to another user (id {info.st_uid}, you are {os.geteuid()})"
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"is writable by others (mode {stat.S_IMODE(info.st_mode):04o})"
    return None


def require_private_root(root: Path) -> None:
    """Raise ArtifactRejected when someone else could put an artifact into the store `root`."""
    if not stat.S_ISDIR(root.lstat().st_mode):
        _refuse(f"{root} is a file, not a folder. Choose a folder for compiled code.")
    if why := _written_by_others(root, folder=True):
        _refuse(
            f"{root} {why}, so it can hold no compiled code: others could put code there, which "
            f"would run as you. {_remedy(root)}"
        )
    for parent in () if sys.platform == "win32" else root.parents:
        mode = parent.stat().st_mode
        if everyone_can_replace(mode):
            _refuse(
                f"everyone can put another folder in the place of {root}, because {parent} is "
                f"writable by everyone (mode {stat.S_IMODE(mode):04o}). Choose a folder elsewhere, "
                "for example in your home."
            )


def _remedy(root: Path) -> str:
    """Return what to do about a folder that others can write.

    Its rights are changed only where that harms nobody: the folder is the user's own, and it is
    empty or a store. Root owns the folders of the system, so root has to have made a store of it.
    """
    info = root.lstat()
    if info.st_uid not in (0, os.geteuid()):
        return "Choose a folder of your own."
    shared = info.st_mode & stat.S_ISVTX or info.st_uid != os.geteuid()
    if not shared and (_is_store(root) or (info.st_uid and not any(root.iterdir()))):
        return f"Run: chmod go-w '{root}'"
    if everyone_can_replace(info.st_mode):  # then a folder in it can be replaced, too
        return "Choose a folder elsewhere, for example in your home."
    return f"Choose a folder of your own in it, for example {root / 'accel'}"


def _is_store(root: Path) -> bool:
    """Return whether the user has made a store of the folder."""
    try:
        return (root / MARK).lstat().st_uid == os.geteuid()
    except OSError:
        return False


def everyone_can_replace(mode: int) -> bool:
    """Return whether everyone can rename what lies in a folder with this `st_mode`."""
    return bool(mode & stat.S_IWOTH and not mode & stat.S_ISVTX)


def require_closed(place: Path) -> None:
    """Raise ArtifactRejected when someone else could exchange what lies in the folder `place`."""
    for folder in () if sys.platform == "win32" else (place, *place.parents):
        info = folder.stat()
        if _others_write(info) or info.st_uid not in (0, os.geteuid(), _UNMAPPED):
            who = f"owner {info.st_uid}, mode {stat.S_IMODE(info.st_mode):04o}"
            _refuse(
                f"{folder} lets others exchange what lies in the temporary folder {place} ({who}). "
                f"{OTHER_TEMP}"
            )


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


def _refuse(why: str) -> NoReturn:
    raise ArtifactRejected(why)
