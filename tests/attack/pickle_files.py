"""Malformed checkpoints of `torch.save`, by what is wrong with them; evil_files.py has others."""

from __future__ import annotations

import collections
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .kit import weights
from .safetensors_files import VICTIM

Edit = Callable[[dict[str, bytes]], None]
HUGE = (40_000, 32, 3, 3)


class Made:
    """What a pickle makes by calling a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: object):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.function, self.arguments


def saved(path: Path, more: dict[Any, Any], legacy: bool = False) -> None:
    """Write a good checkpoint with these items changed or added."""
    torch.save({**weights(), **more}, path, _use_new_zipfile_serialization=not legacy)


def view(offset: Any = 0, shape: Any = HUGE, strides: Any = (0, 0, 0, 0)) -> Made:
    """Return a tensor of these numbers over a storage of 1152 values, as many as VICTIM has."""
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.ones(1152, dtype=torch.float16).untyped_storage(),
        dtype=torch.float16,
        _internal=True,
    )
    ordered = collections.OrderedDict()
    make = torch._utils._rebuild_tensor_v2
    return Made(make, storage, offset, shape, strides, False, ordered)


_YEARS = b")" + b"q\0h\0\x86" * 64
"""Opcodes of tuples whose hash is the sum of 2^64 hashes."""


def _again(count: int, long: bytes, other: bytes, value: bytes) -> Callable[[Path], None]:
    """Make `long` (noted at 0) and `other` (at 1) once, and `value` of them many times."""
    values = b"".join(b"X\x1b\0\0\0model.diffusion_model.%05d" % n + value for n in range(count))
    return _pickled(long + b"q\0" + other + b"q\1}(" + values + b"u.")


_STORED = b"(X\7\0\0\0storagectorch\nHalfStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQ"
_VIEW = b"ctorch._utils\n_rebuild_tensor_v2\n"
_ONES = b"(" + b"K\1" * 300_000 + b"t"
_PAIRS = b"](" + b"".join(b"J" + struct.pack("<i", n) + b"N\x86" for n in range(100_000)) + b"e"

_NOTES = {
    "steps": collections.Counter({1: 2}),
    "set": {1, "a"},
    "bytes": b"\xff",
    "array": bytearray(b"x"),
    "complex": 1j,
    "device": torch.device("cpu"),
    "shape": torch.Size([1]),
    "dtype": torch.float16,
}


def _victim(value: Callable[[], object], legacy: bool = False) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse and of quantised tensors
            saved(path, {VICTIM: value()}, legacy)

    return write


def _zipped(edit: Edit, compression: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    """Change the members of a good file; their names are without the folder's."""

    def write(path: Path) -> None:
        saved(path, {})
        with zipfile.ZipFile(path) as archive:
            members = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
        edit(members)
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(f"archive/{name}", content)

    return write


def _member(field: int, value: int, name: str = "data.pkl") -> Callable[[Path], None]:
    """Change a number of 4 bytes in what a zip's list says of a member."""

    def write(path: Path) -> None:
        _zipped(lambda _: None)(path)
        data = bytearray(path.read_bytes())
        at = data.rindex(f"archive/{name}".encode()) - 46 + field
        data[at : at + 4] = value.to_bytes(4, "little")
        path.write_bytes(data)

    return write


def _end(field: int, value: int) -> Callable[[Path], None]:
    """Change a number of 4 bytes at the end of a zip's list."""

    def write(path: Path) -> None:
        _zipped(lambda _: None)(path)
        data = bytearray(path.read_bytes())
        at = data.rindex(b"PK\5\6") + field
        data[at : at + 4] = value.to_bytes(4, "little")
        path.write_bytes(data)

    return write


def _pickled(content: bytes) -> Callable[[Path], None]:
    return _zipped(lambda members: members.update({"data.pkl": b"\x80\x02" + content}))


def _legacy(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        saved(path, {}, legacy=True)
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return write


def _claim(count: int) -> Callable[[Path], None]:
    """Let a storage of a legacy file have another number of values than its tensor."""

    def change(data: bytearray) -> None:
        at = data.index(struct.pack("<q", 1152))
        data[at : at + 8] = struct.pack("<q", count)

    return _legacy(change)


def _bomb(members: dict[str, bytes]) -> None:
    members["data.pkl"] = members["data.pkl"] + bytes(100 << 20)


def _many_members(path: Path) -> None:
    """Write a zip whose list has 5 MiB."""
    saved(path, {})
    info = zipfile.ZipInfo("archive/data/x")
    info.CRC = info.compress_size = info.file_size = info.header_offset = 0
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("last", b"")
        archive.filelist += [info] * 90_000


def _quantised(channel: bool) -> Tensor:
    values = torch.ones(4, 32, 3, 3)
    if channel:
        zeros = torch.zeros(4, dtype=torch.long)
        return torch.quantize_per_channel(values, torch.ones(4), zeros, 0, torch.qint8)
    return torch.quantize_per_tensor(values, 1.0, 0, torch.quint8)


def _shared() -> dict[str, Any]:
    """All tensors of a UNet as parts of one storage, which is as large as the largest of them."""
    tensors = weights()
    storage = torch.ones(max(t.numel() for t in tensors.values()), dtype=torch.float16)
    return {name: storage[: t.numel()].view(t.shape) for name, t in tensors.items()}


FILES: dict[str, Callable[[Path], None]] = {
    "expanded": _victim(lambda: torch.zeros(1, dtype=torch.float16).expand(HUGE)),
    "expanded in part": _victim(lambda: torch.zeros(4, 1, 3, 3).expand(4, 32, 3, 3)),
    "expanded in the old format": _victim(lambda: torch.zeros(1).expand(HUGE), legacy=True),
    "sparse": _victim(lambda: torch.zeros(4, 32, 3, 3).to_sparse()),
    "huge and sparse": _victim(lambda: torch.sparse_coo_tensor(size=(2**20, 2**20, 3, 3))),
    "quantised": _victim(lambda: _quantised(channel=False)),
    "quantised by channel": _victim(lambda: _quantised(channel=True)),
    "complex": _victim(lambda: torch.ones(4, 32, 3, 3, dtype=torch.complex64)),
    "without data": _victim(lambda: torch.ones(HUGE, device="meta")),
    "whole numbers": _victim(lambda: torch.ones(4, 32, 3, 3, dtype=torch.int64)),
    "NaN": _victim(lambda: torch.full((4, 32, 3, 3), torch.nan)),
    "a storage that is too small": _victim(lambda: view(0, HUGE, (288, 9, 3, 1))),
    "a storage that is missed": _victim(lambda: view(1, (4, 32, 3, 3), (288, 9, 3, 1))),
    "a negative offset": _victim(lambda: view(-1, (4, 32, 3, 3), (288, 9, 3, 1))),
    "a negative stride": _victim(lambda: view(1151, (4, 32, 3, 3), (-288, -9, -3, -1))),
    "a negative shape": _victim(lambda: view(0, (-4, 32, 3, 3), (288, 9, 3, 1))),
    "numbers beyond 64 bits": _victim(lambda: view(0, (10**40,), (1,))),
    "fewer strides": _victim(lambda: view(0, (4, 32, 3, 3), (288,))),
    "a shape of words": _victim(lambda: view(0, ("4", 32, 3, 3), (288, 9, 3, 1))),
    "a shape that is a number": _victim(lambda: view(0, 4, 1)),
    "no storage": _victim(
        lambda: Made(torch._utils._rebuild_tensor_v2, 1, 0, (1,), (1,), False, 0)
    ),
    "one storage for all": lambda path: saved(path, _shared()),
    "a bytearray of 60 GB": _victim(lambda: Made(bytearray, 60 * 10**9)),
    "a key whose hash takes years": _pickled(b"}" + _YEARS + b"K\x01s."),
    "a set that takes years": _pickled(b"c__builtin__\nset\n]" + _YEARS + b"a\x85R."),
    "pairs that take years": _pickled(
        b"ccollections\nOrderedDict\n]" + _YEARS + b"K\x01\x86a\x85R."
    ),
    "a long shape for many tensors": _again(100, _ONES, _VIEW, b"h\1(" + _STORED + b"K\0h\0h\0tR"),
    "a long shape by many names": _again(
        2000, _ONES, _VIEW + b"(" + _STORED + b"K\0h\0h\0tR", b"h\1"
    ),
    "many dictionaries of the same pairs": _again(
        100, _PAIRS, b"ccollections\nOrderedDict\n", b"h\1h\0\x85R"
    ),
    "many calls with the same row": _again(50_000, _ONES, b"cbuiltins\nset\n", b"h\1h\0R"),
    "a note in the 2^31st place": _pickled(b"}r\xff\xff\xff\x7f."),
    "a word of 4 GB": _pickled(b"}X\xff\xff\xff\xffabc."),
    "a word of 2^64 bytes": _pickled(b"}\x8d" + b"\xff" * 8 + b"abc."),
    "a number of 2 GB": _pickled(b"}\x8b\xff\xff\xff\x7f1."),
    "half a character": _pickled(b"}X\x03\0\0\0\xed\xa0\x80K\x01s."),
    "5 million dictionaries": _pickled(b"}" * 5_000_000 + b"."),
    "deep lists": _pickled(b"]" * 100_000 + b"a" * 99_999 + b"."),
    "a dictionary of itself": _pickled(b"}q\0X\x0a\0\0\0state_dicth\0s."),
    "no end": _pickled(b"}"),
    "nothing": _pickled(b"."),
    "a note that is missing": _pickled(b"h\x05."),
    "an unknown protocol": _zipped(lambda members: members.update({"data.pkl": b"\x80\x09}."})),
    "a call of a number": _pickled(b"K\x01)R."),
    "a storage of nothing": _pickled(b"NQ."),
    "a storage without a key": _pickled(b"(X\7\0\0\0storageNNNNtQ."),
    "a list": lambda path: torch.save([torch.ones(1)], path),
    "a tensor": lambda path: torch.save(torch.ones(1), path),
    "whole numbers as names": lambda path: torch.save({1: torch.ones(1)}, path),
    "a state that is a list": lambda path: torch.save({"state_dict": [1]}, path),
    "no tensors": lambda path: torch.save({"state_dict": {}}, path),
    "no data.pkl": _zipped(lambda members: members.pop("data.pkl") and None),
    "a storage less": _zipped(lambda members: members.pop("data/0") and None),
    "a short storage": _zipped(lambda members: members.update({"data/0": b"short"})),
    "compressed": _zipped(lambda _: None, zipfile.ZIP_DEFLATED),
    "a compressed bomb": _zipped(_bomb, zipfile.ZIP_DEFLATED),
    "another compression": _zipped(lambda _: None, zipfile.ZIP_BZIP2),
    "an encrypted member": _member(8, 1),
    "a member that is not there": _member(42, 2**31, "data/0"),
    "a member that is none": _member(42, 5, "data/0"),
    "a member of 4 GB": _member(24, 2**32 - 2),
    "a storage of 4 GB": _member(24, 2**32 - 2, "data/0"),
    "a list of 2 GB": _end(12, 2**31),
    "a list that is not there": _end(16, 2**31),
    "many members": _many_members,
    "another magic number": _legacy(lambda data: data.__setitem__(5, data[5] ^ 1)),
    "a legacy file of 2^40 values": _claim(2**40),
    "a legacy file of -1 values": _claim(-1),
    "a legacy file cut in its values": _legacy(lambda data: data.__delitem__(slice(-999, None))),
    "a legacy file cut in its names": _legacy(lambda data: data.__delitem__(slice(999, None))),
    "a part of a larger kernel": _victim(lambda: torch.ones(4, 64, 3, 3)[:, :32]),
    "a turned kernel": _victim(lambda: torch.ones(3, 3, 32, 4).permute(3, 2, 0, 1)),
    "a parameter": _victim(lambda: torch.nn.Parameter(torch.ones(4, 32, 3, 3))),
    "what trainers note": lambda path: torch.save({"state_dict": weights(), **_NOTES}, path),
}
GOOD = {"a part of a larger kernel", "a turned kernel", "a parameter", "what trainers note"}
