"""Builds the engines that the store lacks, one after the other, each in a child process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ....errors import CompileFailed, NoRoom
from ....store import ArtifactStore
from ....store.private_folder import temporary_folder
from ...jobs import CompiledUnits, Job, Parts
from ...target import Target
from ..aoti.isolated_python import python_command, python_environment
from ..aoti.process_tree import end, remove
from .engines import ENGINE_FILE, Wanted

SECONDS = {True: 15.0, False: 1.0}
"""What building the engine of a whole UNet, or of a unit, is expected to take; seen on 2 cores."""

_QUIET = subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0


class EngineJob(Job):
    """Builds the engines of `wanted` that `store` lacks; its result is what `load` returns."""

    def __init__(
        self,
        target: Target,
        store: ArtifactStore,
        wanted: Mapping[str, Wanted],
        load: Callable[[], CompiledUnits],
        made_with: Mapping[str, str | None],
    ):
        super().__init__(f"accel-tensorrt-{target.key[:8]}", target)
        self._store, self._wanted, self._load, self._made_with = store, wanted, load, made_with

    def work(self) -> CompiledUnits:
        """Build what is missing, then load everything. Raises CompileFailed or StoreError."""
        missing = [key for key in self._wanted if not self._store.contains(key)]
        expected = {key: SECONDS[self._wanted[key].whole] for key in missing}
        self.parts = parts = Parts(expected)  # type: ignore[arg-type]  any key will do
        for key in missing:
            began = time.monotonic()
            parts.begin(key)  # type: ignore[arg-type]
            self._build(key)
            parts.finish(key, time.monotonic() - began)  # type: ignore[arg-type]
            self.compiled += 1
        self.report("preparing the engines for this card")
        return self._load()

    def _build(self, key: str) -> None:
        wanted = self._wanted[key]
        with _own_folder() as folder:
            request = json.dumps(wanted.request)
            (folder / "request.json").write_text(request, encoding="utf-8")
            self._run(folder, wanted.name)
            engine = folder / ENGINE_FILE
            engine.write_bytes(zlib.compress((folder / "engine").read_bytes()))
            self._store.put(
                wanted.recipe,
                {ENGINE_FILE: engine},
                keep=self._wanted,
                name=self.target.name,
                made_with=self._made_with,
            )

    def _run(self, folder: Path, name: str) -> None:
        """Run the child until it ends, or this job is cancelled."""
        log = folder / "log"
        with log.open("wb") as stream:
            child = subprocess.Popen(
                python_command("lib_accel.compile.backends.tensorrt.build", folder),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=python_environment(),
                start_new_session=True,
                creationflags=_QUIET,
            )
        try:
            while child.poll() is None:
                self.report(f"building the engine of {name}")
                time.sleep(0.1)
        finally:
            end(child.pid)
            child.wait()
        if child.returncode:
            lines = log.read_text(errors="replace").strip().splitlines()
            said = " | ".join(lines[-3:]) or "it printed nothing"
            raise CompileFailed(f"building {name} ended with {child.returncode}: {said}")


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    try:
        folder = Path(tempfile.mkdtemp(prefix="accel-compile-", dir=temporary_folder()))
    except OSError as e:
        raise NoRoom(
            f"there is no folder for temporary files: {e}; "
            "expected one that can be written (TMPDIR, TEMP)"
        ) from e
    try:
        yield folder
    except OSError as e:
        raise NoRoom(f"cannot write to {folder}: {e}; expected room for 200 MB") from e
    finally:
        remove(folder)
