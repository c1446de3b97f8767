"""The file formats of checkpoints: safetensors, and the pickles of `torch.save`.

A pickle is read with `weights_only`, so that nothing in it runs. Whatever is wrong with a file is a
BadCheckpoint that says what was found, what was expected and what to do.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import AccelError, BadCheckpoint
from ..model.reading import Shape

LDM_PREFIX = "model.diffusion_model."

A_CHECKPOINT = f"a Stable Diffusion checkpoint (its UNet's names start with {LDM_PREFIX})"
DOWNLOAD_AGAIN = "Download the file again, or choose another one"
CHOOSE_ANOTHER = "Choose another file"


@dataclass(frozen=True)
class Stored:
    """What the header of a file says about a tensor."""

    shape: Shape
    dtype: torch.dtype


def bad_checkpoint(path: Path, what: str, expected: str, advice: str) -> BadCheckpoint:
    """Return the error that says what the file is, what was expected and what to do."""
    return BadCheckpoint(f"{path} {what}. Expected {expected}. {advice}")


Headers = Callable[[Path], dict[str, Stored]]
"""Reads what a file says about its tensors, by name."""

Tensors = Callable[[Path, Iterable[str]], Iterator[tuple[str, Tensor]]]
"""Reads the tensors of these names."""


def file_format(path: Path) -> tuple[Headers, Tensors]:
    """Return how to read the headers and the tensors of a file. Raises BadCheckpoint."""
    with _reading(path, "file"):
        if path.is_dir():
            raise bad_checkpoint(path, "is a folder", "one checkpoint file", "Choose a file in it")
        if not path.exists():
            raise bad_checkpoint(path, "does not exist", "a checkpoint file", "Check the name")
        if path.stat().st_size == 0:
            raise bad_checkpoint(path, "is empty", A_CHECKPOINT, DOWNLOAD_AGAIN)
        path.open("rb").close()  # safetensors says "no such file" where permission is missing
    if path.suffix.lower() not in _FORMATS:
        raise bad_checkpoint(path, f"ends in '{path.suffix}'", ", ".join(_FORMATS), CHOOSE_ANOTHER)
    return _FORMATS[path.suffix.lower()]


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turn every error of a library that parses the file into a BadCheckpoint."""
    try:
        yield
    except AccelError:
        raise
    except OSError as e:
        advice = "Check its permissions and the disk"
        raise bad_checkpoint(path, f"cannot be read: {e}", "a readable file", advice) from e
    except Exception as e:  # parsers of untrusted bytes raise errors of any type
        text = str(e)
        if forbidden := re.search(r"(?:GLOBAL|class|global:?)\s+([\w.]+\.\w+)", text):
            what = f"is a pickle that wants to run or build {forbidden[1]}; nothing of it was run"
            advice = "If you trust the file, convert it to .safetensors; otherwise delete it"
            raise bad_checkpoint(path, what, "tensors only", advice) from e
        # torch's message advises to switch the protection off
        known = text and "weights_only" not in text
        reason = text.splitlines()[0][:200] if known else type(e).__name__
        what = f"is damaged or is no {kind} ({reason})"
        raise bad_checkpoint(path, what, A_CHECKPOINT, DOWNLOAD_AGAIN) from e


_SAFETENSORS_DTYPES = {
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
    with _reading(path, "safetensors file"), safe_open(str(path), framework="pt") as f:
        for name in f.keys():  # noqa: SIM118 (safe_open is no mapping)
            part = f.get_slice(name)
            code = part.get_dtype()
            dtype = getattr(torch, _SAFETENSORS_DTYPES.get(code, ""), None)
            if dtype is None:
                what = f"stores {name} as {code}, which this torch does not know"
                raise bad_checkpoint(path, what, ", ".join(_SAFETENSORS_DTYPES), CHOOSE_ANOTHER)
            out[name] = Stored(tuple(part.get_shape()), dtype)
    return out


def _safetensors_tensors(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    with _reading(path, "safetensors file"):
        file = safe_open(str(path), framework="pt")
    with file as f:
        for name in names:
            with _reading(path, "safetensors file"):
                tensor = f.get_tensor(name)
            yield name, tensor


def _pickle(path: Path, device: str) -> dict[str, Tensor]:
    """Return the tensors of a `torch.save` file, those under `state_dict` where it has one."""
    with _reading(path, "PyTorch checkpoint"):
        with path.open("rb") as f:
            zipped = f.read(4) == b"PK\x03\x04"  # only this kind can be mapped
        loaded: Any = torch.load(str(path), map_location=device, weights_only=True, mmap=zipped)
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        what = f"holds a {type(loaded).__name__}"
        raise bad_checkpoint(path, what, "a dictionary of tensors", CHOOSE_ANOTHER)
    return {str(name): t.detach() for name, t in loaded.items() if isinstance(t, Tensor)}


def _pickle_headers(path: Path) -> dict[str, Stored]:
    return {name: Stored(tuple(t.shape), t.dtype) for name, t in _pickle(path, "meta").items()}


def _pickle_tensors(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    tensors = _pickle(path, "cpu")
    for name in names:
        if name not in tensors:
            what = f"has lost {name} since it was opened"
            raise bad_checkpoint(path, what, "the same file", "Open it again")
        yield name, tensors[name]


_SAFETENSORS: tuple[Headers, Tensors] = (_safetensors_headers, _safetensors_tensors)
_PICKLE: tuple[Headers, Tensors] = (_pickle_headers, _pickle_tensors)
_FORMATS = {".safetensors": _SAFETENSORS, ".ckpt": _PICKLE, ".pt": _PICKLE, ".pth": _PICKLE}
