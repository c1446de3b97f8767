"""Builds one engine in a child process, and puts it into the store."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from ....errors import ArtifactRejected, CompileFailed, NoRoom
from ....store import ArtifactStore
from ....store.private_folder import temporary_folder
from ..isolated_python import python_command, python_environment
from ..process_tree import end, remove
from .build import WEIGHTS_FILE
from .engines import Wanted
from .libraries import MODULE

ENGINE_FILE = "engine.zlib"
"""The one file of an artifact. Packed, the engine of a UNet takes a tenth."""

LARGEST = 1 << 30
"""The most bytes that an engine may unpack to."""

_QUIET = (  # and making images comes first
    subprocess.CREATE_NO_WINDOW | subprocess.BELOW_NORMAL_PRIORITY_CLASS
    if sys.platform == "win32"
    else 0
)


def build_into(
    store: ArtifactStore,
    wanted: Wanted,
    watch: Callable[[], None] = lambda: None,
    keep: Collection[str] = (),
) -> None:
    """Build the engine and put it into `store`. `watch` is called often; what it raises ends it.

    `keep`: as for `ArtifactStore.put`. Raises CompileFailed with TensorRT's reason, NoRoom where
    there is no space for temporary files, StoreError.
    """
    with _own_folder() as folder:
        _run(folder, wanted, watch)
        packed = folder / ENGINE_FILE
        packed.write_bytes(zlib.compress((folder / "engine").read_bytes()))
        made_with = {MODULE: wanted.version}
        files = {ENGINE_FILE: packed}
        store.put(wanted.recipe, files, keep=keep, name=wanted.family, made_with=made_with)


def build_with(
    wanted: Wanted, write_weights: Callable[[BinaryIO], None], watch: Callable[[], None]
) -> bytes:
    """Return the engine with weights built in, which `write_weights` writes in their order.

    Raises as `build_into` does.
    """
    with _own_folder() as folder:
        with (folder / WEIGHTS_FILE).open("wb") as stream:
            write_weights(stream)
        _run(folder, wanted, watch)
        return (folder / "engine").read_bytes()


def read_engine(store: ArtifactStore, key: str) -> bytes:
    """Return the engine of this key. Raises ArtifactRejected, also where there is none."""
    artifact = store.get(key)
    if artifact is None:
        raise ArtifactRejected(f"artifact {key[:12]} was removed from {store.root}")
    unpacking = zlib.decompressobj()
    try:
        engine = unpacking.decompress((artifact.path / ENGINE_FILE).read_bytes(), LARGEST)
    except (OSError, zlib.error) as error:
        raise ArtifactRejected(f"artifact {key[:12]} holds no engine: {error}", key) from error
    if not unpacking.eof:
        raise ArtifactRejected(f"artifact {key[:12]} holds more than an engine", key)
    return engine


def _run(folder: Path, wanted: Wanted, watch: Callable[[], None]) -> None:
    """Run the child until it ends, or `watch` raises."""
    (folder / "request.json").write_text(json.dumps(wanted.request), encoding="utf-8")
    log = folder / "log"
    with log.open("wb") as stream:
        child = subprocess.Popen(
            python_command("lib_accel.compile.backends.tensorrt.build", folder),
            stdin=subprocess.PIPE,  # it ends when this does, with this process
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=folder,  # TensorRT must leave no file elsewhere
            env=python_environment(),
            start_new_session=True,
            creationflags=_QUIET,
        )
    assert child.stdin is not None
    try:
        while child.poll() is None:
            watch()
            time.sleep(0.1)
    finally:
        if child.poll() is None:
            end(child.pid)
            child.wait()
        child.stdin.close()
    if child.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        said = " | ".join(lines[-3:]) or "it printed nothing"
        raise CompileFailed(
            f"{wanted.name}: building its engine failed ({child.returncode}): {said}"
        )


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """Make a private folder for the child, and remove it at the end."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="accel-compile-", dir=temporary_folder()))
        yield folder
    except OSError as error:
        raise NoRoom(
            f"cannot write temporary files: {error}; expected room for 200 MB (TMPDIR, TEMP)"
        ) from error
    finally:
        if folder:
            remove(folder)
