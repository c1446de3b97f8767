"""Files and folders: create, copy, flush, rename, measure, delete, and explain what failed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from ..errors import StoreError

ARTIFACT_KEY = re.compile(r"[0-9a-f]{64}")

MAX_NAME, MAX_DEPTH = 200, 8
# one part of a path that every system accepts, Windows included, with its reserved device names
_PART = re.compile(
    r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))"
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,148}[A-Za-z0-9_-])?"
)

_OF_WINDOWS = "a path of Windows, and this is another system"
_FOREIGN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[\\/]|\\\\")  # of Windows, or a URL

_FULL = (
    "The disk is full (or your quota is). Free space or choose another folder; "
    "what was stored before is intact."
)
_DENIED = (
    "You need permission to read and write there, and no other program may hold the file. "
    "Fix that or choose another folder."
)
_CHOOSE = "Choose a folder of your own for compiled code."
_ADVICE = {
    errno.ENOSPC: _FULL,
    getattr(errno, "EDQUOT", errno.ENOSPC): _FULL,
    errno.EFBIG: "A file size limit (ulimit -f, or the file system's) is too low. "
    "Raise it or choose another folder.",
    errno.EROFS: "The file system is read-only. Choose another folder, or use the store "
    "read-only (--accel-store-readonly).",
    errno.ENOTDIR: "A part of that path is a file. Choose another folder.",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
}
_OTHER = (
    "Expected a folder on a working disk that you may read and write. "
    "Check it, or choose another folder."
)


@contextlib.contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that says what failed, what was expected, what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename:
            raise StoreError(f"Could not {doing}: {_absent(error.filename)}") from error
        if isinstance(error, FileExistsError) and error.filename:
            what = f"{os.fsdecode(error.filename)} exists already. Choose another name."
            raise StoreError(f"Could not {doing}: {what}") from error
        advice = _ADVICE.get(error.errno if error.errno is not None else -1, _OTHER)
        where = f" ({error.filename})" if error.filename else ""
        raise StoreError(
            f"Could not {doing}: {error.strerror or error}{where}. {advice}"
        ) from error


def _absent(name: str) -> str:
    folder = Path(os.fsdecode(name)).parent
    what = os.fsdecode(name) if folder.exists() else f"the folder {folder}"
    return f"{what} does not exist. Check the name."


def expanded(path: Path) -> Path:
    """Return `path` absolute, without links, and with `~` as the user's home.

    Raises StoreError where that is impossible: also for a URL, and a path of Windows elsewhere.
    """
    found = _FOREIGN.match(os.fspath(path))
    if found and (sys.platform != "win32" or len(found[0]) > len("C:/")):
        what = "part of a URL and no folder" if len(found[0]) > len("C:/") else _OF_WINDOWS
        raise StoreError(f"{path} is {what}. Expected one like {os.path.realpath('accel')}.")
    try:
        return Path(os.path.realpath(path.expanduser()))
    except (RuntimeError, ValueError) as error:  # nobody's home, or a zero byte
        raise StoreError(
            f"{os.fspath(path)!r} names no place: {error}. Expected a path that exists or can be "
            "made, or `~` for the home of a user who has one."
        ) from error


def is_file_name(name: str) -> bool:
    """Return whether `name` is a relative path ('a/b.so') that every file system accepts.

    It has at most MAX_DEPTH parts of ASCII letters, digits, '.', '_' and '-'; none begins with '.'.
    """
    parts = name.split("/")
    return (
        len(name) <= MAX_NAME
        and len(parts) <= MAX_DEPTH
        and all(_PART.fullmatch(part) for part in parts)
    )


def folders_of(names: Collection[str]) -> set[str]:
    """Return the sub-folders that files of these names lie in: 'a' and 'a/b' for 'a/b/c.so'."""
    cuts = ((name, at) for name in names for at, letter in enumerate(name) if letter == "/")
    return {name[:at] for name, at in cuts}


def names_clash(names: Collection[str]) -> bool:
    """Return whether the names cannot stand side by side on a file system that ignores case."""
    folders = folders_of(names)
    paths = {*names, *folders}
    return len({path.casefold() for path in paths}) < len(paths) or bool({*names} & folders)


def open_file(path: Path, links: bool = True) -> BinaryIO:
    """Open a real file for reading; raise StoreError for a device, or a pipe, which would wait.

    Without `links`, a symbolic link is refused too.
    """
    extra = getattr(os, "O_NONBLOCK", 0) | (0 if links else getattr(os, "O_NOFOLLOW", 0))
    if links or not path.is_symlink():
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | extra)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    raise StoreError(f"{path} is not a real file. Expected one. Check the name.")


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can use, and its parents, whatever the umask is."""
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir(mode=0o755, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def require_room(folder: Path, name: str) -> None:
    """Raise StoreError when nothing can be made in `folder`, or it cannot be made.

    A folder is made and removed: `name` in it, or the first of its path that is missing.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    trial = missing[-1] if missing else folder / name
    try:
        trial.mkdir(mode=0o700)
        trial.rmdir()
    except FileExistsError:  # another process has just made it
        pass
    except NotADirectoryError as error:
        raise StoreError(
            f"{trial.parent} is a file, so {folder} cannot be made. {_CHOOSE}"
        ) from error
    except FileNotFoundError as error:  # /proc, or a drive that is not there
        raise StoreError(f"No folder can be made in {trial.parent}. {_CHOOSE}") from error
    except PermissionError as error:
        raise StoreError(f"You may not write in {trial.parent}. {_CHOOSE}") from error


def create(path: Path, mode: int = 0o600) -> BinaryIO:
    """Create a file for writing that nobody else can write, whatever the umask is."""
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))


def create_below(folder: Path, name: str) -> BinaryIO:
    """Create the file `name` ('a/b.so') below `folder`, and private sub-folders for it."""
    place = folder
    for part in PurePosixPath(name).parts[:-1]:
        place /= part
        place.mkdir(mode=0o700, exist_ok=True)
    return create(folder / name)


def copy(source: IO[bytes], target: IO[bytes]) -> tuple[str, int]:
    """Copy everything; return its sha256 in hex and its size in bytes."""
    digest, size = hashlib.sha256(), 0
    while block := source.read(1 << 20):
        size += len(block)
        digest.update(block)
        target.write(block)
    return digest.hexdigest(), size


def sha256(path: Path) -> str:
    """Return the sha256 of a file's content in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def flush(stream: IO[bytes]) -> None:
    """Write everything to the disk, not only to the system's cache."""
    stream.flush()
    os.fsync(stream.fileno())


def flush_folder(path: Path) -> None:
    """Write the entries of a folder to the disk."""
    if sys.platform == "win32":  # it cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folders(path: Path) -> None:
    """Write the entries of a folder and of its sub-folders to the disk."""
    for folder in (path, *(Path(i.path) for i in walk(path) if i.is_dir(follow_symlinks=False))):
        flush_folder(folder)


def rename(source: Path, target: Path, patience_s: float = 12.8) -> None:
    """Rename. On Windows, retry for `patience_s`: a virus scanner may hold a fresh file open."""
    wait, waited = 0.05, 0.0
    while True:
        try:
            source.rename(target)
            return
        except PermissionError:
            if sys.platform != "win32" or os.path.lexists(target) or waited >= patience_s:
                raise
        time.sleep(wait)
        wait, waited = 2 * wait, waited + wait


def read_json(path: Path, most_bytes: int) -> Any:
    """Return what a small file holds; None where there is none, or where it is not JSON."""
    try:
        with path.open("rb") as stream:
            return json.loads(stream.read(most_bytes))
    except (OSError, ValueError, RecursionError):
        return None


def replace_json(path: Path, value: object) -> None:
    """Replace a small file in one step: a process that is killed leaves the old one."""
    if not path.is_absolute():
        raise FileNotFoundError(path)  # "~": the user has no profile
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}-{os.urandom(8).hex()}")
    try:
        new.write_text(json.dumps(value))
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def walk(path: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every file, folder and link below `path`; links are not followed."""
    waiting = [os.fspath(path)]
    while waiting:
        with os.scandir(waiting.pop()) as items:
            for item in items:
                yield item
                if item.is_dir(follow_symlinks=False):
                    waiting.append(item.path)


def bytes_in(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    files = (item for item in walk(path) if not item.is_dir(follow_symlinks=False))
    return sum(item.stat(follow_symlinks=False).st_size for item in files)


def identity_of(path: Path) -> tuple[int, int, int] | None:
    """Return a mark of the directory that `path` is now; None when there is none."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino, info.st_ctime_ns


def delete(path: Path) -> None:
    """Delete a file, a link or a folder with all it holds; another process may do the same."""
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
    except FileNotFoundError:
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)
