"""The file formats of checkpoints: safetensors, and the pickles of `torch.save`.

Whatever is wrong with a file is a BadCheckpoint that says what was found, what was expected and
what to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...model.weight_files import Stored, bad_file, reading, require_file
from .pickles import pickle_headers, pickle_tensors

LDM_PREFIX = "model.diffusion_model."

A_CHECKPOINT = f"a Stable Diffusion checkpoint (its UNet's names start with {LDM_PREFIX})"
CHOOSE_ANOTHER = "Choose another file"

MOST_HEADER_BYTES = 2**24
"""A checkpoint has less than 1 MB of names, and what trainers note besides."""


Headers = Callable[[Path], dict[str, Stored]]
"""Reads what a file says about its tensors, by name."""

Tensors = Callable[[Path, Iterable[str]], Iterator[tuple[str, Tensor]]]
"""Reads the tensors of these names."""


def file_format(path: Path) -> tuple[Headers, Tensors]:
    """Return how to read the headers and the tensors of a file. Raises BadCheckpoint."""
    require_file(path, A_CHECKPOINT)
    if path.suffix.lower() not in FORMATS:
        raise bad_file(path, f"ends in '{path.suffix}'", ", ".join(FORMATS), CHOOSE_ANOTHER)
    return FORMATS[path.suffix.lower()]


_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def _safetensors_headers(path: Path) -> dict[str, Stored]:
    out: dict[str, Stored] = {}
    with reading(path, "safetensors file", A_CHECKPOINT):
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if MOST_HEADER_BYTES < size <= path.stat().st_size:
                what = f"has {size >> 20} MiB of names"
                expected = f"at most {MOST_HEADER_BYTES >> 20} MiB"
                raise bad_file(path, what, expected, CHOOSE_ANOTHER)
            with safe_open(str(path), framework="pt"):  # checks sizes and places
                header = json.loads(stream.read(size))
        # not by `get_slice`, which goes through all names in older safetensors
        for name, part in header.items():
            if name == "__metadata__":
                continue
            dtype = getattr(torch, _DTYPES.get(part["dtype"], ""), None)
            if dtype is None:
                what = f"stores {name} as {part['dtype']}, which this torch does not know"
                raise bad_file(path, what, ", ".join(_DTYPES), CHOOSE_ANOTHER)
            out[name] = Stored(tuple(part["shape"]), dtype)
    return out


def _safetensors_tensors(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    with reading(path, "safetensors file", A_CHECKPOINT):
        file = safe_open(str(path), framework="pt")
    with file as f:
        for name in names:
            with reading(path, "safetensors file", A_CHECKPOINT):
                tensor = f.get_tensor(name)
            yield name, tensor


_SAFETENSORS: tuple[Headers, Tensors] = (_safetensors_headers, _safetensors_tensors)
_PICKLE: tuple[Headers, Tensors] = (pickle_headers, pickle_tensors)
FORMATS = {".safetensors": _SAFETENSORS, ".ckpt": _PICKLE, ".pt": _PICKLE, ".pth": _PICKLE}
"""How to read a file, by how its name ends."""
