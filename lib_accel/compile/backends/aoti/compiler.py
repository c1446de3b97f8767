"""Compile one unit: torch.export, then AOTInductor, then unpack what the store keeps.

Runs in a worker process (worker.py); the process that makes images only loads (load.py).
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ....model import specs
from ...accuracy import example_inputs
from ...units import UnitFn, UnitModule, trace_size
from .load import ARCHIVE, load_unit


@contextmanager
def _without_cudnn_attention() -> Iterator[None]:
    """Keep cuDNN's attention out of what is compiled.

    torch prefers it on cards of compute capability 9.0 and 10.0. Compiled code keeps the choice and
    serves every size, but cuDNN takes no key of length 1 (ATen, `check_cudnn_tensor_shapes`).
    """
    flags = torch.backends.cuda
    if not (hasattr(flags, "enable_cudnn_sdp") and flags.cudnn_sdp_enabled()):  # torch 2.5
        yield
        return
    flags.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        flags.enable_cudnn_sdp(True)


@_without_cudnn_attention()
def compile_unit(
    unit: specs.Spec,
    dtype: torch.dtype,
    device: torch.device,
    folder: Path,
    headers: bool = True,
) -> UnitFn:
    """Compile a unit for dynamic batch, height, width and context length.

    Writes its files into the new folder `folder` and returns the code, loaded from there.
    `headers`: torch may compile its C++ headers first, once for all units of a worker.
    Raises whatever torch's compiler or loader raises; the caller names the unit.
    """
    from torch._inductor import aoti_compile_and_package, config  # takes seconds to import

    options = options_for(unit, device)
    if not headers and hasattr(config.aot_inductor, "precompile_headers"):
        options["aot_inductor.precompile_headers"] = False

    package = folder.with_suffix(".pt2")
    aoti_compile_and_package(
        _exported(unit, dtype, device),
        package_path=str(package),
        inductor_configs=options,
    )
    _unpack(package, folder)
    try:
        return load_unit(folder, device)
    except RuntimeError:
        if device.type == "cpu":
            raise
        _keep_archive(package, folder)
        return load_unit(folder, device)
    finally:
        package.unlink()


def _exported(unit: specs.Spec, dtype: torch.dtype, device: torch.device) -> Any:
    """Return the unit as an exported program with weights as inputs."""
    module = UnitModule(unit, fused=device.type == "cuda")
    activations, weights = example_inputs(unit, trace_size(unit), dtype, device)
    # of [B], [B, C], [B, L, D] and [B, C, H, W]
    free = {1: (0,), 2: (0,), 3: (0, 1), 4: (0, 2, 3)}
    dims = [dict.fromkeys(free[a.ndim], torch.export.Dim.DYNAMIC) for a in activations]
    with torch.no_grad():
        return torch.export.export(
            module,
            (activations, weights),
            dynamic_shapes=(dims, [None] * len(weights)),
            strict=False,
        )


def options_for(unit: specs.Spec, device: torch.device) -> dict[str, Any]:
    """Return Inductor's options for a unit.

    None lets Inductor measure variants of products (`max_autotune`, `coordinate_descent_tuning`):
    images are made on the same card meanwhile, and what wins there is kept. Without line tables for
    debuggers the library is smaller.
    """
    from torch._inductor import config

    options: dict[str, Any] = {}
    name = "enable_line_tables"  # torch 2.13 and later
    if hasattr(config.aot_inductor, name):
        options[f"aot_inductor.{name}"] = False
    if device.type == "cuda":
        options["split_reductions"] = False  # `fused_group_norm` is split where that pays
        if isinstance(unit, specs.SpatialTransformer):
            # a sum of two activations is written, not computed again from both by the next ones
            options["realize_reads_threshold"] = 1
    return options


def _unpack(package: Path, folder: Path) -> None:
    """Unpack the compiled code without its generated sources, which nothing reads again."""
    folder.mkdir()
    with zipfile.ZipFile(package) as archive:
        for entry in archive.infolist():
            # newer torch puts everything into a folder of the package's own name
            _, code, name = entry.filename.partition("data/aotinductor/")
            if not code or name.endswith(".cpp"):
                continue
            file = folder / code / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(archive.read(entry))


def _keep_archive(package: Path, folder: Path) -> None:
    """Put the package itself into `folder`, compressed and with empty sources.

    On a GPU, torch before 2.13 loads archives only and unpacks them into the temporary folder. It
    finds the metadata by the name of a source, so the names stay. Delete this function, and ARCHIVE
    in load.py, when torch 2.12 is no longer supported.
    """
    shutil.rmtree(folder)
    folder.mkdir()
    with (
        zipfile.ZipFile(package) as old,
        zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as new,
    ):
        for entry in old.infolist():
            source = entry.filename.endswith(".cpp")
            new.writestr(entry.filename, b"" if source else old.read(entry))
