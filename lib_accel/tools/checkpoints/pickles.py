"""Checkpoints of `torch.save`, read so that nothing in them is run, built or believed.

`torch.load` is not used, not even with `weights_only`: it takes whatever memory a file asks for,
and before torch 2.6 a file could run code. Here the pickle only describes tensors, which are then
parts of the mapped file.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...model.weight_files import DOWNLOAD_AGAIN, Stored, bad_file, reading
from .unpickler import Forbidden, Other, Unpickler, View

_KIND, _EXPECTED = "PyTorch checkpoint", "a dictionary of tensors, as torch.save writes it"
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

MOST_BYTES = 2**22
"""Of a pickle and of the list of a zip's members. A checkpoint has less than 1 MB of each."""


@dataclass(frozen=True)
class _Part(Stored):
    """A tensor and where it lies in the file, in bytes."""

    strides: tuple[int, ...]
    start: int
    end: int


Places = dict[str, tuple[int, int]]
"""Where storages lie: the key, the first byte and the number of bytes."""


def pickle_headers(path: Path) -> dict[str, Stored]:
    """Return what the file says about its tensors, by name. Raises BadCheckpoint."""
    return dict(_read(path))


def pickle_tensors(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of these names. Raises BadCheckpoint."""
    parts = _read(path)
    with reading(path, _KIND, _EXPECTED):
        size = path.stat().st_size
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    for name in names:
        if name not in parts:
            what = f"has lost {name} since it was opened"
            raise bad_file(path, what, "the same file", "Open it again")
        part = parts[name]
        with reading(path, _KIND, _EXPECTED):
            content = data[part.start : part.end]
            if part.start % part.dtype.itemsize:
                content = content.clone()
            tensor = content.view(part.dtype).as_strided(part.shape, part.strides)
        yield name, tensor


def _read(path: Path) -> dict[str, _Part]:
    with reading(path, _KIND, _EXPECTED), path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        try:
            root, places = (_read_zip if zipped else _read_legacy)(path, file)
        except Forbidden as e:
            what = f"is a pickle that wants to run or build {e}; nothing of it was run"
            advice = "If you trust the file, convert it to .safetensors; otherwise delete it"
            raise bad_file(path, what, "tensors only", advice) from e
        if isinstance(root, dict) and isinstance(root.get("state_dict"), dict):
            root = root["state_dict"]
        if not isinstance(root, dict):
            kind = "Tensor" if isinstance(root, View) else type(root).__name__
            raise bad_file(path, f"holds a {kind}", _EXPECTED, "Choose another file")
        size = path.stat().st_size
        tensors = {str(n): t for n, t in root.items() if isinstance(t, (View, Other))}
        return {name: _part(path, name, t, places, size) for name, t in tensors.items()}


def _part(path: Path, name: str, t: View | Other, places: Places, size: int) -> _Part:
    """Return where a tensor lies. Raises BadCheckpoint where it has not the numbers it needs."""
    if isinstance(t, Other) or t.overlaps:
        kind = t.kind if isinstance(t, Other) else "tensor that uses numbers more than once"
        raise bad_file(path, f"holds {name} as a {kind}", "dense tensors", "Choose another file")
    first, length = places[t.storage.key]
    start = first + t.offset * t.dtype.itemsize
    end = start + t.extent * t.dtype.itemsize
    if min((t.offset, *t.shape, *t.strides)) < 0 or end > min(first + length, size):
        what = f"is damaged: {name} {list(t.shape)} needs more numbers than the file has for it"
        raise bad_file(path, what, "a whole file", DOWNLOAD_AGAIN)
    return _Part(t.shape, t.dtype, t.strides, start, end)


def _read_zip(path: Path, file: BinaryIO) -> tuple[Any, Places]:
    with zipfile.ZipFile(_Sparing(file)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        name = next((n for n in members if n.endswith("/data.pkl")), None)
        if name is None:
            what = "is a zip without the member data.pkl"
            raise bad_file(path, what, "what torch.save writes", "Choose another file")
        folder = name.removesuffix("data.pkl") + "data/"
        ours = {n: i for n, i in members.items() if n == name or n.startswith(folder)}
        for n, info in ours.items():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                what = f"is compressed: its member {n} holds {info.file_size} bytes"
                advice = "Load it with torch and save it again, or choose another file"
                raise bad_file(path, what, "the uncompressed zip of torch.save", advice)
        if members[name].file_size > MOST_BYTES:
            raise _too_long()
        pickled = Unpickler(io.BytesIO(archive.read(name)))
        root = pickled.load()
        missing = [key for key in pickled.storages if folder + key not in ours]
        if missing:
            raise ValueError(f"its member {folder}{missing[0]} is missing")
        places = {key: _place(file, ours[folder + key]) for key in pickled.storages}
    return root, places


def _place(file: BinaryIO, member: zipfile.ZipInfo) -> tuple[int, int]:
    file.seek(member.header_offset)
    signature, name, extra = struct.unpack("<4s22x2H", file.read(30))
    if signature != b"PK\x03\x04":
        raise ValueError(f"{member.filename} is not where the list says")
    return member.header_offset + 30 + name + extra, member.file_size


def _read_legacy(_: Path, file: BinaryIO) -> tuple[Any, Places]:
    """Read what torch.save wrote before 1.6: pickles, then the storages one after the other."""
    stream = io.BytesIO(file.read(MOST_BYTES))

    def load() -> Any:
        return Unpickler(stream).load()

    if (load(), load()) != (_LEGACY_MAGIC, _LEGACY_VERSION):
        raise ValueError("it does not begin as one")
    load()  # about the machine
    pickled = Unpickler(stream)
    root, keys = pickled.load(), load()
    places, at = {}, stream.tell()
    for key in keys:
        storage = pickled.storages[key]
        file.seek(at)
        (count,) = struct.unpack("<q", file.read(8))
        if count != storage.elements or count < 0:
            raise ValueError(f"{key} has {count} numbers, and {storage.elements} are expected")
        places[key] = (at + 8, count * storage.dtype.itemsize)
        at += 8 + places[key][1]
    return root, places


class _Sparing(io.BufferedIOBase):
    """A file that reads nothing that is too long: zipfile reads a list of any length at once."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int | None = -1) -> bytes:
        wanted = MOST_BYTES + 1
        content = self._file.read(wanted if size is None or size < 0 else min(size, wanted))
        if len(content) == wanted:
            raise _too_long()
        return content


def _too_long() -> ValueError:
    return ValueError(f"its description has more than {MOST_BYTES >> 20} MiB")
