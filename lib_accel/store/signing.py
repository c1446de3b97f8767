"""Keys and signatures: HMAC-SHA256 with one secret of 32 bytes.

Exports are signed with a key that the operator names. Every artifact of a store is signed too, with
the **store key**: the user's own, which is made at first use and lies in the user's profile, or one
that the host names for a store that several users or machines share. So code that somebody else put
into the folder does not serve, however right its checksums are.

Where no profile can be written, a key for this process alone signs: code is made and serves, and
the next process, which cannot know that key, makes it again.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from ..config import own_key_file
from ..errors import StoreError
from .files import create, expanded, flush, make_folder, open_file, os_errors
from .privacy import everyone_can_replace

KEY_BYTES = 32
_log = logging.getLogger(__name__)

_BESIDE = Path(os.path.abspath(__file__)).parents[3]  # noqa: PTH100  (links stay)
_EXTENSIONS = _BESIDE if _BESIDE.name.startswith("extensions") else None
"""The folder of extensions of a WebUI that this package lies in, or None."""


def generate_key() -> bytes:
    """Return a new key."""
    return secrets.token_bytes(KEY_BYTES)


def write_key(path: Path, key: bytes) -> None:
    """Write a new key file that only its owner can read. An existing file is never replaced."""
    require_key(key)
    require_unserved(path)
    with os_errors(f"write the key file {path}"), create(path) as stream:
        stream.write(key.hex().encode() + b"\n")
        flush(stream)


def read_key(path: Path, links: bool = True) -> bytes:
    """Return the key in `path`: 64 hex digits. Without `links`, a symbolic link is refused.

    On POSIX the file must be the user's (or root's) and closed to everyone else, and so must the
    place where it lies. On Windows no access list is checked: the standard library cannot read it.
    Raises StoreError.
    """
    text, info = read_guarded(path, links)
    require_unserved(path)
    text = text.strip()
    if not re.fullmatch(rb"[0-9a-fA-F]{%d}" % (KEY_BYTES * 2), text):
        raise StoreError(
            f"{path} holds no key. Expected {KEY_BYTES * 2} hex digits. "
            "Make one: python3 -m lib_accel store key FILE"
        )
    if sys.platform != "win32":  # what it advises would do harm to a file of another kind
        require_owner(path, info, secret=True)
    return bytes.fromhex(text.decode())


def read_guarded(
    path: Path, links: bool = True, most_bytes: int = 1024
) -> tuple[bytes, os.stat_result]:
    """Return what a key file holds, and what the system says of it.

    Raises StoreError where it cannot be read, is longer, or where everyone can replace it.
    """
    with os_errors(f"read the key file {path}"), open_file(path, links) as stream:
        _require_kept(path)
        text, info = stream.read(most_bytes + 1), os.fstat(stream.fileno())
    if len(text) > most_bytes:  # a part of it may say the contrary of the whole
        raise StoreError(
            f"{path} has more than {most_bytes} bytes. Expected a file of keys. Name another one."
        )
    return text, info


def require_owner(path: Path, info: os.stat_result, secret: bool = False) -> None:
    """Raise StoreError where the key file is another user's, or a secret that others can read."""
    if sys.platform == "win32":
        return
    if info.st_uid not in (0, os.geteuid()):
        raise StoreError(
            f"The key file {path} belongs to another user (id {info.st_uid}). Expected a file that "
            "is yours or root's. Make a key of your own: python3 -m lib_accel store key FILE"
        )
    if secret and info.st_mode & 0o077:
        cure = f"Run: chmod 600 '{path}'; if" if info.st_uid == os.geteuid() else "If"
        raise StoreError(
            f"The key file {path} is open to others (mode {stat.S_IMODE(info.st_mode):04o}). "
            f"Expected mode 0600. {cure} others could read it, make a new key."
        )


def _require_kept(path: Path) -> None:
    """Raise StoreError where everyone can put another file in the place of the key `path`."""
    folders = () if sys.platform == "win32" else (*path.absolute().parents, *expanded(path).parents)
    for folder in folders:
        mode = folder.stat().st_mode
        if everyone_can_replace(mode):
            raise StoreError(
                f"The key file {path} is one that everyone can replace (folder {folder}, mode "
                f"{stat.S_IMODE(mode):04o}). Expected a folder that only you or root can write. "
                "Keep keys elsewhere, for example in your home, and make a new one."
            )


def require_unserved(path: Path) -> None:
    """Raise StoreError where a WebUI gives the secret `path` to everybody who can open its page.

    Its route `/file=` gives all that lies in its folder, but for hidden files and folders.
    """
    for place in (Path(os.path.abspath(path)), expanded(path)):  # noqa: PTH100  (links stay)
        served = [folder for folder in place.parents if _is_served(folder)]
        if served and not any(part.startswith(".") for part in place.parts):
            raise StoreError(
                f"The key file {path} lies in {served[0]}, from where the WebUI gives files to "
                "everybody who can open its page. Expected a key that only you can read. Keep keys "
                "elsewhere, for example in your home, and make a new one."
            )


def _is_served(folder: Path) -> bool:
    webui = os.path.isfile(folder / "webui.py")  # noqa: PTH113  (raises nothing in a closed folder)
    return webui or folder == _EXTENSIONS


def sign(key: bytes, what: str, text: bytes) -> str:
    """Return the signature of `text` in hex. `what` is its kind: no other kind can pass for it."""
    require_key(key)
    return hmac.new(key, f"lib_accel {what} 1\n".encode() + text, hashlib.sha256).hexdigest()


def require_key(key: bytes) -> None:
    """Raise StoreError when the key is too short."""
    if len(key) < KEY_BYTES:
        raise StoreError(
            f"The signing key has {len(key)} bytes. Expected at least {KEY_BYTES}. "
            "Make one: python3 -m lib_accel store key FILE"
        )


def store_key(given: Path | None) -> bytes | None:
    """Return the store key: that in the file `given`, else the user's own.

    None where the user has none yet. Raises StoreError where the file cannot be trusted.
    """
    if given is not None:
        return read_key(Path(os.path.expanduser(given)))  # noqa: PTH111  (never raises)
    own = own_key_file()
    if own.is_absolute() and os.path.lexists(own):
        return read_key(own, links=False)
    return _of_this_process() if _of_this_process.cache_info().currsize else None


KeyReader = Callable[[], "bytes | None"]


def key_reader(given: Path | None) -> KeyReader:
    """Return what returns the store key, which it reads once. Raises as `store_key` does."""
    return functools.lru_cache(functools.partial(store_key, given))


def make_store_key(given: Path | None, lasting: bool = False) -> bytes:
    """Return the store key; make the user's own when there is none.

    Where it cannot be kept, the result is a key for this process alone, or with `lasting` a
    StoreError that says why.
    """
    key = store_key(given)
    if key is not None and not (lasting and _of_this_process.cache_info().currsize):
        return key
    try:
        return _make_own(own_key_file())
    except StoreError as error:
        if lasting:
            raise
        key = _of_this_process()
        _log.warning(
            "No key can be kept in your profile, so compiled code serves in this process alone and "
            "the next one makes it again. Name a key file with --accel-store-key or "
            "ACCEL_STORE_KEY_FILE to keep it. %s",
            error,
        )
        return key


@functools.lru_cache(maxsize=1)
def _of_this_process() -> bytes:
    return generate_key()


def _make_own(path: Path) -> bytes:
    """Make the user's key, or return the one that another process was faster to make."""
    if not path.is_absolute():
        raise StoreError(f"{path} names no place: you have no home folder. Set HOME.")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with os_errors(f"make the key file {path}"):
        make_folder(path.parent)
        try:
            write_key(draft, generate_key())
            read_key(draft, links=False)  # some file systems give every file the same mode
            # in one step, and neither replaces a key that is there
            draft.rename(path) if sys.platform == "win32" else os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)
    return read_key(path, links=False)
