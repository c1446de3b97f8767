"""Compile one unit into a package without weights (torch.export, then AOTInductor)."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...errors import ArtifactRejected, StoreError
from ...model import architecture as arch
from ...store.artifact import require_private_root
from ...store.locks import sweep, workspace
from ...store.seal import os_errors
from ..units import UnitFn, UnitModule, example_inputs

TRACE_SIZE = (2, 24, 20, 77)
"""(B, H, W, L) of the tracing example: every size differs from 1 and from the others, so that none is taken for a constant."""


def compile_unit(layer: arch.Layer, dtype: torch.dtype, device: torch.device, path: Path) -> None:
    """Write the compiled unit to `path` (`*.pt2`): dynamic batch, height, width and context length.

    Raises whatever torch's compiler raises; the caller names it.
    """
    import torch._inductor  # slow to import: only where something is compiled

    module = UnitModule(layer)
    activations, weights = example_inputs(layer, TRACE_SIZE, dtype, device)
    dynamic = torch.export.Dim.DYNAMIC
    dims = [{0: dynamic, 2: dynamic, 3: dynamic}]
    if module.side == "emb":
        dims.append({0: dynamic})
    elif module.side == "context":
        dims.append({0: dynamic, 1: dynamic})
    with torch.no_grad():
        program = torch.export.export(
            module,
            (activations, weights),
            dynamic_shapes=(dims, [None] * len(weights)),
            strict=False,
        )
        raw = path.with_suffix(".raw.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(raw))
    _repack(raw, path)
    raw.unlink()


def _repack(source: Path, target: Path) -> None:
    """Compress the package and empty the generated sources: 0.4 MB instead of 1.8 MB, and it loads as it is.

    torch before 2.13 finds the metadata by the name of a source, so the names stay.
    """
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as new,
    ):
        for entry in old.infolist():
            new.writestr(
                entry.filename, b"" if entry.filename.endswith(".cpp") else old.read(entry)
            )


def load_unit(path: Path, device: torch.device) -> UnitFn:
    """Load compiled code. It is native code: the path must come from the artifact store, which has checked it.

    Raises StoreError where it cannot be unpacked, and what torch or zipfile raise for a package that is none.
    """
    index = -1 if device.index is None else device.index
    with _loading, os_errors(f"unpack {path.name} into the temporary files"):
        if not _own_folder().is_dir():
            _own_folder.cache_clear()  # whoever cleans temporary files took it for an old one
        folder = Path(tempfile.mkdtemp(dir=_own_folder()))
        with zipfile.ZipFile(path) as package:
            package.extractall(folder / "package")
        try:
            run = _package_loader(folder / "package", index).run
        except RuntimeError:  # torch before 2.13 takes archives only, and unpacks them itself (up to 2.12 always into /tmp on Linux)
            with _temporary_files(folder):
                run = _package_loader(path, index).run

    def call(inputs: list[torch.Tensor]) -> torch.Tensor:
        return run(inputs)[0]

    return call


_loading = (
    threading.Lock()
)  # one folder for this process, and TMPDIR changed by one thread at a time


@functools.cache
def _own_folder() -> Path:
    """Where this process unpacks. It stays until the process ends: a GPU reads its kernels late, Windows deletes no loaded library.

    torch's own folders stay for good where a process ends by `os._exit`, as the WebUI does. Ours is then the next process's to sweep.
    """
    root = Path(tempfile.gettempdir()) / (
        "accel" if sys.platform == "win32" else f"accel-{os.geteuid()}"
    )
    root.mkdir(mode=0o700, exist_ok=True)
    try:
        require_private_root(root)
    except ArtifactRejected as error:  # no fault of the artifact
        raise StoreError(f"{error} Temporary files go where TMPDIR or TEMP say.") from error
    with contextlib.suppress(StoreError):  # what stays this time is for the next process
        sweep(root)
    kept = contextlib.ExitStack()
    atexit.register(kept.close)
    return kept.enter_context(workspace(root))


@contextlib.contextmanager
def _temporary_files(folder: Path) -> Iterator[None]:
    """Let C++ put its temporary files into `folder`."""
    before = {name: os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")}
    os.environ.update(dict.fromkeys(before, str(folder)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _package_loader(path: Path, device_index: int) -> Any:
    """What `torch._inductor.aoti_load_package` wraps, without its two seconds of imports and its flattening of every call's arguments.

    Its arguments grew with torch 2.7 (single-threaded) and 2.8 (runners, device); older ones take fewer. Single-threaded means
    no locks or event waits inside, which a CUDA graph could not record.
    """
    loader = torch._C._aoti.AOTIModelPackageLoader  # type: ignore[attr-defined]
    arguments = (str(path), "model", True, 1, device_index)
    for count in (5, 3):
        try:
            return loader(*arguments[:count])
        except TypeError:  # pybind11's answer to another number of arguments
            continue
    return loader(*arguments[:2])
