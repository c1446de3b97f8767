"""Pickles that make the folder `marker` where they are read as pickles are read."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .kit import weights
from .pickle_files import Made

Load = Callable[[Path], object]
"""Reads the file without any care."""

_LEGACY = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})


def _torch_load(path: Path) -> object:
    return torch.load(path, weights_only=False)


def _pickle_load(path: Path) -> object:
    return pickle.loads(path.read_bytes())


def _call(marker: Path) -> Made:
    return Made(os.mkdir, str(marker))


def _saved(call: Callable[[Path], object], legacy: bool = False) -> Callable[[Path, Path], Load]:
    """Save what makes the folder beside the tensors of a UNet."""

    def write(path: Path, marker: Path) -> Load:
        state = {"state_dict": {**weights(), "evil": call(marker)}}
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        return _torch_load

    return write


def _bare(protocol: int) -> Callable[[Path, Path], Load]:
    def write(path: Path, marker: Path) -> Load:
        path.write_bytes(pickle.dumps({"evil": _call(marker)}, protocol))
        return _pickle_load

    return write


def _opcodes(text: str) -> Callable[[Path, Path], Load]:
    """Write opcodes by hand; `{}` is the folder's name and `os` the module's of mkdir."""

    def write(path: Path, marker: Path) -> Load:
        name = str(marker).encode("unicode_escape").decode()
        path.write_bytes(text.format(name, os=os.mkdir.__module__).encode())
        return _pickle_load

    return write


def _in_a_zip(path: Path, marker: Path) -> Load:
    """A newer protocol in the place of the description."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"evil": _call(marker)}, 4))
        archive.writestr("archive/version", "3\n")
    return _torch_load


def _in_a_part(number: int) -> Callable[[Path, Path], Load]:
    """In the magic number, the version, the machine, the tensors or the list of a legacy file."""

    def write(path: Path, marker: Path) -> Load:
        parts: list[Any] = [*_LEGACY, {}, []]
        parts[number] = _call(marker)
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
        return _torch_load if number > 2 else _pickles_load

    return write


def _pickles_load(path: Path) -> None:
    with path.open("rb") as stream:
        for _ in range(3):
            pickle.load(stream)


def _in_a_tar(path: Path, marker: Path) -> Load:
    """The format of torch 0.1, which some versions of torch read without any care."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(_call(marker) if name == "storages" else 0, 2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return _tar_load


def _tar_load(path: Path) -> None:
    with tarfile.open(path) as archive:
        member = archive.extractfile("storages")
        assert member is not None
        pickle.load(member)


FILES: dict[str, Callable[[Path, Path], Load]] = {
    "zip": _saved(_call),
    "legacy": _saved(_call, legacy=True),
    "eval": _saved(lambda marker: Made(eval, f"__import__('os').mkdir({str(marker)!r})")),
    "exec": _saved(lambda marker: Made(exec, f"import os; os.mkdir({str(marker)!r})")),
    "list of map": _saved(lambda marker: Made(list, Made(map, os.mkdir, [str(marker)]))),
    "protocol 0": _bare(0),
    "protocol 2": _bare(2),
    "protocol 4": _bare(4),
    "protocol 5": _bare(5),
    "opcode INST": _opcodes("(V{}\ni{os}\nmkdir\n."),
    "opcode OBJ": _opcodes("(c{os}\nmkdir\nV{}\no."),
    "opcode REDUCE": _opcodes("c{os}\nmkdir\n(V{}\ntR."),
    "protocol 4 in a zip": _in_a_zip,
    "the magic number": _in_a_part(0),
    "the version": _in_a_part(1),
    "the machine": _in_a_part(2),
    "the tensors": _in_a_part(3),
    "the list of storages": _in_a_part(4),
    "tar": _in_a_tar,
}
