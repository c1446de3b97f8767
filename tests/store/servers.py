"""Servers of remote stores that run in this process: an S3 server, and a web server with faults."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lib_accel.store import signing
from lib_accel.store.exchange.shared import SharedStore

Fault = Callable[[BaseHTTPRequestHandler, bytes], None]


def shared(folder: Path, url: str, key: Path | None, **more: object) -> SharedStore:
    """Return a store with its folder below `folder`."""
    return SharedStore(url, folder, key_file=key, **more)  # type: ignore[arg-type]


def fleet_key(folder: Path) -> Path:
    """Return a file with the key that all machines of a fleet have."""
    path = folder / "fleet.key"
    if not path.exists():
        signing.write_key(path, bytes(range(1, 33)))
    return path


def published(folder: Path, units: int | None = None) -> Path:
    """Return the folder of a shared store with the first `units` of the tiny UNet, without code."""
    from .. import tiny  # here, as processes without torch use this module too

    there, code, target = folder / "there", folder / "code", tiny.target()
    there.mkdir()
    code.write_bytes(b"no code")
    builder = shared(folder / "builder", there.as_uri(), fleet_key(folder))
    for unit in target.units[:units]:
        builder.put(target.recipe(unit), {"x.so": code})
    assert builder.settle(10)
    return there


@contextlib.contextmanager
def web_server(root: Path, fault: Fault | None = None) -> Iterator[str]:
    """Serve the files of a folder; yield the URL. `fault` answers instead, where it is given."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = root / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            (fault or whole)(self, path.read_bytes())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(request: BaseHTTPRequestHandler, data: bytes, size: int | None = None) -> None:
    """Answer with `data`, of `size` bytes by the header, and end the connection."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(data) if size is None else size))
    request.send_header("Connection", "close")
    request.end_headers()
    request.wfile.write(data)
    request.close_connection = True


def whole(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, data)


def cut(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, data[: len(data) // 2], len(data))


def truncated(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, data[:-1])


def longer(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, data + b"x")


def garbage(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, b"<html>Please log in</html>")


def nothing(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, b"")


def changed(request: BaseHTTPRequestHandler, data: bytes) -> None:
    middle = len(data) // 2
    send(request, data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


def error_500(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.send_error(500)


def no_answer(request: BaseHTTPRequestHandler, data: bytes) -> None:
    time.sleep(2)
    request.close_connection = True


def gone(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.close_connection = True


def endless(request: BaseHTTPRequestHandler, data: bytes) -> None:
    """Announce 100 GB, and send as many of them as are taken."""
    with contextlib.suppress(OSError):
        request.send_response(200)
        request.send_header("Content-Length", str(10**11))
        request.end_headers()
        for _ in range(1000):
            request.wfile.write(bytes(1 << 20))
    request.close_connection = True


def listens_to_itself(request: BaseHTTPRequestHandler, data: bytes) -> None:
    """Refer to itself for ever."""
    request.send_response(302)
    request.send_header("Location", request.path)
    request.send_header("Content-Length", "0")
    request.end_headers()


FAULTS: tuple[Fault, ...] = (
    cut,
    truncated,
    longer,
    garbage,
    nothing,
    changed,
    error_500,
    no_answer,
    gone,
    endless,
    listens_to_itself,
)


@contextlib.contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run moto's S3 server with an empty bucket; yield the URL of a store in it."""
    for name in ("moto", "flask_cors"):
        pytest.importorskip(name, reason=f"NOT RUN: {name} is not installed (see requirements.txt)")
    s3fs = pytest.importorskip("s3fs", reason="NOT RUN: s3fs is not installed")
    from moto.server import ThreadedMotoServer  # type: ignore[import-not-found]

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "DEFAULT_REGION": "us-east-1"}
    settings |= {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        bucket = f"accel-{secrets.token_hex(4)}"  # moto remembers those of other tests
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
        yield f"s3://{bucket}/accel"
    finally:
        server.stop()
