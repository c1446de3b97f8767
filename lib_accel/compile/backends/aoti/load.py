"""Load compiled code from where it lies, unchanged and out of everybody else's reach."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ....model.parts import cpu_operators
from ...machine import Machine, instruction_set, is_x86_64
from ...units import UnitFn

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


def misfit(folder: Path, machine: Machine, cpu: str | None) -> str | None:
    """Return why the code in `folder`, whose C++ part is for `cpu`, cannot run here, or None.

    Without this, the first call would fail in the middle of an image, or end the process.
    """
    here = instruction_set()
    if cpu and is_x86_64() and cpu > here:  # levels are in the order of their names
        return f"its code is for processors with {cpu}; this one has {here}"
    if machine.device_type != "cuda":
        return None
    if cpu is None:  # the key of code for a CPU says it
        return "it does not name the processors that its C++ part is for"
    ours = tuple(map(int, machine.capability.split(".")))
    for header in _cubin_headers(folder):
        card = _compute_capability(header)
        # code of one major version runs on cards of this version, from its minor version on
        if card is None or card[0] != ours[0] or card[1] > ours[1]:
            made_for = f"compute capability {card[0]}.{card[1]}" if card else "no known card"
            return f"it has GPU code for {made_for}; expected {machine.capability}"
    return None


_ELF_HEADER = 64
_EM_CUDA = 190


def _cubin_headers(folder: Path) -> Iterator[bytes]:
    """Yield the ELF header of every file of GPU code in `folder`."""
    if (folder / ARCHIVE).is_file():
        with zipfile.ZipFile(folder / ARCHIVE) as archive:
            for name in filter(_is_cubin, archive.namelist()):
                with archive.open(name) as stream:
                    yield stream.read(_ELF_HEADER)
    for file in filter(_is_cubin, folder.rglob("*")):
        with file.open("rb") as stream:
            yield stream.read(_ELF_HEADER)


def _is_cubin(name: str | Path) -> bool:
    return str(name).endswith(".cubin")


def _compute_capability(header: bytes) -> tuple[int, int] | None:
    """Read what card a cubin was made for; None where it is none.

    The architecture, 86 for 8.6, is the first byte of `e_flags`. CUDA 13 has a newer ABI of cubins
    (0x41 in `e_ident`), where it is the second.
    """
    if len(header) < _ELF_HEADER or header[:4] != b"\x7fELF":
        return None
    machine, flags = struct.unpack_from("<18xH28xI", header)
    if machine != _EM_CUDA:
        return None
    newer = header[7] == 0x41
    return divmod((flags >> 8 if newer else flags) & 0xFF, 10)


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
