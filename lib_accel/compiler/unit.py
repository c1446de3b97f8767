"""Compile one unit into a package without weights (torch.export, then AOTInductor)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from .. import architecture as arch
from ..units import UnitFn, UnitModule, example_inputs

TRACE_SIZE = (2, 24, 20, 77)
"""(B, H, W, L) of the tracing example: every size differs from 1 and from the others, so that none is taken for a constant."""


def compile_unit(layer: arch.Layer, dtype: torch.dtype, device: torch.device, options: dict[str, Any], path: Path) -> None:
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
        program = torch.export.export(module, (activations, weights), dynamic_shapes=(dims, [None] * len(weights)), strict=False)
        raw = path.with_suffix(".raw.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(raw), inductor_configs=options)
    _repack(raw, path)
    raw.unlink()


def _repack(source: Path, target: Path) -> None:
    """Compress the package and leave out the generated sources: 0.4 MB instead of 1.8 MB, and it loads as it is."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".cpp"):
                new.writestr(entry.filename, old.read(entry))


def load_unit(path: Path, device: torch.device) -> UnitFn:
    """Load compiled code. It is native code: the path must come from the artifact store, which has checked it."""
    run = _package_loader(path, -1 if device.index is None else device.index).run

    def call(inputs: list[torch.Tensor]) -> torch.Tensor:
        return run(inputs)[0]

    return call


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
