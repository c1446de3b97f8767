"""Load compiled code from where it lies, unchanged and out of everybody else's reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...model import cpu_operators
from ..units import UnitFn

ARCHIVE = "unit.pt2"
_LIBRARIES = (".so", ".pyd", ".dll")


def load_unit(folder: Path, device: torch.device) -> UnitFn:
    """Load the compiled unit whose files lie in `folder`.

    It is native code: `folder` must be what `ArtifactStore.place` returned, or private to this
    process. Raises RuntimeError when it does not load.
    """
    cpu_operators.register()  # compiled code finds them by name
    run = _runner(folder, device).run

    def call(inputs: list[torch.Tensor]) -> torch.Tensor:
        return run(inputs)[0]

    return call


def _runner(folder: Path, device: torch.device) -> Any:
    """Return torch's object that runs the unit."""
    index = -1 if device.index is None else device.index
    if (folder / ARCHIVE).is_file():
        return _package_loader(folder / ARCHIVE, index)
    try:
        return _package_loader(folder, index)
    except RuntimeError:  # torch before 2.13 loads no folders
        library = next((f for f in folder.rglob("*") if f.suffix in _LIBRARIES), None)
        if device.type != "cpu" or library is None:
            raise
        return torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)  # type: ignore[attr-defined]


def _package_loader(path: Path, device_index: int) -> Any:
    """Return the object that `torch._inductor.aoti_load_package` wraps.

    That function imports for two seconds and flattens the arguments of every call. The loader's
    own arguments grew with torch 2.7 (single-threaded) and 2.8 (runners, device). Single-threaded
    means no locks or event waits inside, which a CUDA graph could not record.
    """
    loader = torch._C._aoti.AOTIModelPackageLoader  # type: ignore[attr-defined]
    arguments = (str(path), "model", True, 1, device_index)
    for count in (5, 3):
        try:
            return loader(*arguments[:count])
        except TypeError:  # pybind11's answer to another number of arguments
            continue
    return loader(*arguments[:2])
