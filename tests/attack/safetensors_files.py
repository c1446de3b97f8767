"""Malformed .safetensors files, by what is wrong with them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lib_accel.tools.checkpoints.reading import LDM_PREFIX

from .kit import weights

VICTIM = LDM_PREFIX + "out.2.weight"
LAYERS = 20_000
"""As many blocks cost minutes where each looks through all names."""


def raw(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    """Return a file of this header, as it is or as JSON; `size` is what it says of its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def parts() -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a good file; VICTIM is the last tensor."""
    tensors, header, data = weights(), {}, b""
    for name in sorted(tensors, key=lambda name: name == VICTIM):
        content = tensors[name].numpy().tobytes()
        place = [len(data), len(data) + len(content)]
        header[name] = {"dtype": "F16", "shape": [*tensors[name].shape], "data_offsets": place}
        data += content
    return header, data


def _changed(**entry: Any) -> Callable[[Path], None]:
    """Change what the file says of VICTIM; None removes it."""

    def write(path: Path) -> None:
        header, data = parts()
        header[VICTIM] |= entry
        header[VICTIM] = {key: value for key, value in header[VICTIM].items() if value is not ...}
        path.write_bytes(raw(header, data))

    return write


def _moved(begin: int, end: int) -> Callable[[Path], None]:
    """Move the ends of VICTIM's data."""

    def write(path: Path) -> None:
        header, data = parts()
        place = header[VICTIM]["data_offsets"]
        header[VICTIM]["data_offsets"] = [place[0] + begin, place[1] + end]
        path.write_bytes(raw(header, data))

    return write


def _named(name: str, **entry: Any) -> Callable[[Path], None]:
    """Add a tensor without numbers, or what stands in its place."""

    def write(path: Path) -> None:
        header, data = parts()
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
        path.write_bytes(raw({**header, name: entry.get("value", empty)}, data))

    return write


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _values(dtype: torch.dtype, code: str, value: float) -> Callable[[Path], None]:
    """Store VICTIM in another dtype, with one value."""

    def write(path: Path) -> None:
        header, data = parts()
        first, _ = header[VICTIM]["data_offsets"]
        shape = header[VICTIM]["shape"]
        content = (
            torch.full(shape, value, dtype=torch.float64)
            .to(dtype)
            .view(torch.uint8)
            .numpy()
            .tobytes()
        )
        place = [first, first + len(content)]
        header[VICTIM] = {"dtype": code, "shape": shape, "data_offsets": place}
        path.write_bytes(raw(header, data[:first] + content))

    return write


def _names(count: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        path.write_bytes(raw({f"{LDM_PREFIX}x{n}": empty for n in range(count)}))

    return write


def _many_blocks(path: Path) -> None:
    """A UNet with a long row of convolutions of one channel."""
    header: dict[str, Any] = {}
    data = b""
    shapes = {"time_embed.0.weight": [1, 1], "time_embed.0.bias": [1]}
    shapes |= {"time_embed.2.weight": [1, 1], "time_embed.2.bias": [1]}
    for n in range(LAYERS):
        shapes[f"input_blocks.{n}.0.weight"] = [1, 1, 3, 3]
        shapes[f"input_blocks.{n}.0.bias"] = [1]
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        place = [len(data), len(data) + size]
        header[LDM_PREFIX + name] = {"dtype": "F16", "shape": shape, "data_offsets": place}
        data += bytes(size)
    path.write_bytes(raw(header, data))


def _duplicate(path: Path) -> None:
    """The same name twice, once with numbers that belong to another tensor."""
    header, data = parts()
    other = json.dumps({VICTIM: {**header[VICTIM], "data_offsets": [0, 2304]}})[1:]
    path.write_bytes(raw(json.dumps(header)[:-1].encode() + b", " + other.encode(), data))


_DEEP = b'{"a":' * 200_000
_WHAT = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

FILES: dict[str, Callable[[Path], None]] = {
    "no header": _bytes(bytes(8)),
    "shorter than a header": _bytes(b"\x07"),
    "a header of 2^63 bytes": _bytes(raw(b"{}", size=2**63)),
    "a header of 2^64 bytes": _bytes(raw(b"{}", size=2**64 - 1)),
    "a header beyond the end": _bytes(raw(b"{}", size=3)),
    "no JSON": _bytes(raw(b"\x93NUMPY" * 9)),
    "a JSON list": _bytes(raw([_WHAT])),
    "a JSON null": _bytes(raw(None)),
    "a JSON number": _bytes(raw(10**40)),
    "deep JSON": _bytes(raw(_DEEP)),
    "deep closed JSON": _bytes(raw(_DEEP + b"1" + b"}" * 200_000)),
    "no UTF-8": _bytes(raw(b'{"\xff\xfe": 1}')),
    "the same name twice": _duplicate,
    "trailing bytes": lambda path: path.write_bytes(raw(*parts()) + b"more") and None,
    "a missing end": lambda path: path.write_bytes(raw(*parts())[:-1]) and None,
    "no dtype": _changed(dtype=...),
    "no shape": _changed(shape=...),
    "no place": _changed(data_offsets=...),
    "a null dtype": _changed(dtype=None),
    "an unknown dtype": _changed(dtype="F128"),
    "a dtype of another size": _changed(dtype="F32"),
    "a number for a dtype": _changed(dtype=1),
    "a negative shape": _changed(shape=[-4, 32, 3, 3]),
    "a shape of fractions": _changed(shape=[4.5, 32, 3, 3]),
    "a shape of words": _changed(shape=["4", 32, 3, 3]),
    "a shape of lists": _changed(shape=[[4], 32, 3, 3]),
    "a null shape": _changed(shape=None),
    "a huge shape": _changed(shape=[2**40, 2**40]),
    "a huge shape with zero": _changed(shape=[2**63 - 1, 2, 0]),
    "a shape beyond 64 bits": _changed(shape=[10**30]),
    "a shape of 1000 dimensions": _changed(shape=[4, 32, 3, 3, *[1] * 1000]),
    "another shape of the same size": _changed(shape=[32, 4, 3, 3]),
    "a scalar for a kernel": _changed(shape=[]),
    "one number for a place": _changed(data_offsets=[0]),
    "three numbers for a place": _changed(data_offsets=[0, 1, 2]),
    "a place of fractions": _changed(data_offsets=[0.5, 1.5]),
    "a negative place": _changed(data_offsets=[-8, 0]),
    "a place beyond 64 bits": _changed(data_offsets=[10**30, 10**30]),
    "a place backwards": _moved(2304, -2304),
    "a place of others": _moved(-2304, -2304),
    "a place beyond the end": _moved(2304, 2304),
    "a hole before it": _moved(2, 0),
    "one number too few": _moved(0, -2),
    "one number too many": _moved(0, 2),
    "an empty name": _named(LDM_PREFIX),
    "control characters": _named(f"{LDM_PREFIX}\x1b[2J\x07\r\n\x00out"),
    "half a character": _named(f"{LDM_PREFIX}\ud800"),
    "right to left": _named(f"{LDM_PREFIX}\u202egnp.exe"),
    "a name of 1 MB": _named(LDM_PREFIX + "x." * 500_000),
    "a number of 5000 digits": _named(f"{LDM_PREFIX}input_blocks.{'9' * 5000}.0.weight"),
    "a number in Arabic": _named(f"{LDM_PREFIX}input_blocks.\u0663.0.weight"),
    "a number with a zero": _named(f"{LDM_PREFIX}input_blocks.03.0.weight"),
    "a tensor that is a list": _named(f"{LDM_PREFIX}x", value=[]),
    "a tensor that is a word": _named(f"{LDM_PREFIX}x", value="x"),
    "metadata that are a list": _named("__metadata__", value=[1]),
    "metadata that are numbers": _named("__metadata__", value={"a": 1}),
    "many names": _names(60_000),
    "300000 names": _names(300_000),
    "many blocks": _many_blocks,
    "NaN": _values(torch.float16, "F16", float("nan")),
    "infinity": _values(torch.float16, "F16", float("-inf")),
    "infinity once converted": _values(torch.float64, "F64", 1e300),
    "whole numbers": _values(torch.int8, "I8", 1),
    "truth": _values(torch.bool, "BOOL", 1),
    "two dtypes": _values(torch.float32, "F32", 1),
    "plain metadata": _named("__metadata__", value={"a": "b"}),
}
GOOD = {"two dtypes", "plain metadata"}
"""They are read, as a dtype is given."""
