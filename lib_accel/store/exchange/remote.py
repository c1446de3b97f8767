"""A remote store: archives of one artifact each, `<key>.zip`, at a URL.

An archive appears whole or not at all: an object store writes an object in one step, and in a
folder a file is renamed into place. Whatever goes wrong is a StoreError that names the place,
without a password in it. What is read is only bytes here: whoever takes them checks them.

`file://` and `http(s)://` (to read only) need no package. `s3://` needs s3fs; fsspec opens others
as well, which are not tried in the tests.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import secrets
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from ...errors import StoreError, printable
from ..files import create, flush, open_file

MOST_BYTES = 32 * 1024**2
"""An archive of one artifact has a few MB, and two dozen threads may each hold one in memory."""

CONNECT_S, READ_S = 5, 15
"""How long a server may be silent."""


class Place(Protocol):
    """Where named objects lie."""

    def read(self, name: str, most: int) -> bytes | None:
        """Return what lies there, None where nothing does; what is longer than `most` is cut."""
        ...

    def write(self, name: str, data: bytes, replace: bool) -> bool:
        """Write in one step; return False where there is something and not `replace`."""
        ...

    def remove(self, name: str) -> None:
        """Remove what lies there."""
        ...


class Remote:
    """The remote store at `url`. Nothing is opened before it is used."""

    def __init__(self, url: str):
        kind, slashes, rest = url.partition("://")
        self._url = url = f"{kind.lower()}{slashes}{rest}"
        self.writable = not url.startswith(("http://", "https://"))
        self._place: Place | None = None
        self._secrets: list[str] = []
        self._clear = _is_clear(url)
        if not self._clear:
            self.shown = printable(f"{kind.lower()}://***@{rest.rpartition('@')[2]}")
            return
        parts = urllib.parse.urlsplit(url)
        login = parts.password or parts.username  # which may be a token by itself
        self._secrets = [text for text in (login, parts.query) if text]
        where = parts.netloc.rpartition("@")[2]
        self.shown = printable(f"{parts.scheme}://{where}{parts.path}")

    @property
    def has_secrets(self) -> bool:
        """Whether the URL holds what only those may know who use the store."""
        return bool(self._secrets) or not self._clear

    def read(self, name: str, most: int = MOST_BYTES) -> bytes | None:
        """Return an object of at most `most` bytes; None where there is none. Raises StoreError."""
        with self._errors("read"):
            data = self._opened().read(name, most)
        if data is not None and len(data) > most:
            raise StoreError(
                f"The store {self.shown} has more than {most} bytes under {name}. Expected less. "
                "Remove it there."
            )
        return data

    def write(self, name: str, data: bytes, replace: bool = False) -> bool:
        """Write an object; return False where there is one and it is not to be replaced.

        Raises StoreError.
        """
        with self._errors("write"):
            return self._opened().write(name, data, replace)

    def remove(self, name: str) -> None:
        """Remove an object that may be there. Raises StoreError."""
        with self._errors("write"), contextlib.suppress(FileNotFoundError):
            self._opened().remove(name)

    def _opened(self) -> Place:
        if not self._clear:
            raise StoreError(
                f"The URL of the store {self.shown} has a password with characters that stand for "
                "something else there. Expected them as %2F for /, %3F for ?, %23 for #, %5B for [."
            )
        if self._place is None:
            kind = self._url.partition("://")[0]
            self._place = _KINDS.get(kind, _Filesystem)(self._url)
        return self._place

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except ImportError as error:
            raise StoreError(
                f"The store {self.shown} needs a package that is not installed: "
                f"{self._without_secrets(error)}. Run: pip install {_package(self._url)}"
            ) from error
        except Exception as error:  # each kind of server has errors of its own
            raise StoreError(
                f"Could not {doing} the store {self.shown}: {self._without_secrets(error)}. "
                "Expected one that answers. Check its name, your rights and the network."
            ) from error

    def _without_secrets(self, error: Exception) -> str:
        text = str(error).strip() or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***").replace(urllib.parse.unquote(secret), "***")
        return printable(text.splitlines()[0][:300])


def _is_clear(url: str) -> bool:
    """Return whether a URL has its password where one belongs; `/` in it ends the host's name."""
    try:
        urllib.parse.urlsplit(url).port  # noqa: B018  (raises where it is no number)
    except ValueError:
        return False
    return True


def _path_of(url: str) -> Path:
    parts = urllib.parse.urlsplit(url)
    path = urllib.parse.unquote(parts.path)
    if parts.netloc not in ("", "localhost"):  # also a folder after two slashes, or ~
        if sys.platform != "win32":
            raise ValueError(f"it names the host {parts.netloc!r}; a full path has three slashes")
        return Path(f"//{parts.netloc}{path}")
    return Path(path[1:] if re.match(r"/[A-Za-z]:", path) else path)  # file:///C:/accel


def _package(url: str) -> str:
    kind = url.partition("://")[0]
    return {"s3": "s3fs", "gs": "gcsfs"}.get(kind, f"fsspec[{printable(kind)}]")


class _Folder:
    """A folder of this machine, which may be mounted."""

    def __init__(self, url: str):
        self._root = _path_of(url)

    def read(self, name: str, most: int) -> bytes | None:
        """Return what the file holds."""
        try:
            with open_file(self._root / name) as stream:
                return stream.read(most + 1)
        except FileNotFoundError:
            if not self._root.is_dir():
                raise
            return None

    def write(self, name: str, data: bytes, replace: bool) -> bool:
        """Write beside it, then put it in place by one step."""
        final = self._root / name
        draft = self._root / f".{name}.{secrets.token_hex(8)}.part"
        try:
            with create(draft, 0o644) as stream:
                stream.write(data)
                flush(stream)
            if replace:
                draft.replace(final)
                return True
            return _put_new(draft, final)
        finally:
            draft.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove the file."""
        (self._root / name).unlink()


def _put_new(draft: Path, final: Path) -> bool:
    """Give `draft` another name where nothing has it; return whether that was so."""
    try:
        os.link(draft, final)
    except FileExistsError:
        return False
    except OSError:  # no hard links there
        if final.exists():
            return False
        draft.replace(final)
    return True


class _Web:
    """A web server. Nothing can be written there."""

    def __init__(self, url: str):
        parts = urllib.parse.urlsplit(url)
        self._root = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        self._login = ""
        if parts.username is not None:
            pair = f"{parts.username}:{parts.password or ''}"
            self._login = base64.b64encode(urllib.parse.unquote_to_bytes(pair)).decode()

    def read(self, name: str, most: int) -> bytes | None:
        path = f"{self._root.path.rstrip('/')}/{name}"
        request = urllib.request.Request(self._root._replace(path=path).geturl())
        if self._login:  # for this server alone, not for one that it refers to
            request.add_unredirected_header("Authorization", f"Basic {self._login}")
        try:
            with urllib.request.urlopen(request, timeout=READ_S) as stream:
                return _read_all(stream, most)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (404, 410):
                    return None
            raise

    def write(self, name: str, data: bytes, replace: bool) -> bool:
        raise OSError(f"{name} cannot be written by HTTP")

    def remove(self, name: str) -> None:
        raise OSError(f"{name} cannot be removed by HTTP")


class _Filesystem:
    """What fsspec opens."""

    def __init__(self, url: str):
        import fsspec  # type: ignore[import-untyped]

        if "::" in url:
            raise ValueError("a URL within a URL means nothing here")
        options: dict[str, Any] = {"skip_instance_cache": True}
        if url.startswith("s3://"):
            limits = {"connect_timeout": CONNECT_S, "read_timeout": READ_S}
            options["config_kwargs"] = {**limits, "retries": {"max_attempts": 2}}
            options["use_listings_cache"] = False
        self._fs, root = fsspec.core.url_to_fs(url, **options)
        self._root = root.rstrip("/")

    def read(self, name: str, most: int) -> bytes | None:
        try:
            with self._fs.open(f"{self._root}/{name}", "rb") as stream:
                return _read_all(stream, most)
        except FileNotFoundError:  # or, as S3 says no more, there is no such bucket
            return None

    def write(self, name: str, data: bytes, replace: bool) -> bool:
        path = f"{self._root}/{name}"
        if replace:
            self._fs.pipe_file(path, data)
            return True
        try:
            self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:  # as an object store says it
            if "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
                return False
            raise
        return True

    def remove(self, name: str) -> None:
        self._fs.rm_file(f"{self._root}/{name}")


def _read_all(stream: IO[bytes], most: int) -> bytes:
    """Return what the stream holds, but little more than `most` bytes."""
    data = io.BytesIO()  # joining blocks would take twice the memory
    while data.tell() <= most and (block := stream.read(1 << 20)):
        data.write(block)
    return data.getvalue()


_KINDS: Mapping[str, Callable[[str], Place]] = {"file": _Folder, "http": _Web, "https": _Web}
