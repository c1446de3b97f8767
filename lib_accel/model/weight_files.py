"""Files of weights, whatever their format: which can be read, and what is said about the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import AccelError, BadCheckpoint, printable
from .reading import Shape

DOWNLOAD_AGAIN = "Download the file again, or choose another one"


@dataclass(frozen=True)
class Stored:
    """What the header of a file says about a tensor."""

    shape: Shape
    dtype: torch.dtype


def bad_file(path: Path, what: str, expected: str, advice: str) -> BadCheckpoint:
    """Return the error that says what the file is, what was expected and what to do."""
    return BadCheckpoint(printable(f"{path} {what}. Expected {expected}. {advice}"))


def require_file(path: Path, expected: str) -> None:
    """Raise BadCheckpoint where the path names nothing that can be read to its end."""
    with reading(path, "file", expected):
        try:
            str(path).encode()
        except UnicodeEncodeError as e:  # the libraries that read files take no other names
            raise bad_file(path, "has a name that is no Unicode", "a name", "Rename it") from e
        if path.is_dir():
            raise bad_file(path, "is a folder", "one file", "Choose a file in it")
        if not path.exists():
            raise bad_file(path, "does not exist", "a file", "Check the name")
        if not path.is_file():  # a pipe waits for ever, a device may have no end
            raise bad_file(path, "is a pipe or a device", "a file on a disk", "Choose another one")
        if path.stat().st_size == 0:
            raise bad_file(path, "is empty", expected, DOWNLOAD_AGAIN)
        path.open("rb").close()  # safetensors says "no such file" where permission is missing


@contextlib.contextmanager
def reading(path: Path, kind: str, expected: str) -> Iterator[None]:
    """Turn every error of what parses the file into a BadCheckpoint."""
    try:
        yield
    except AccelError:
        raise
    except OSError as e:
        advice = "Check its permissions and the disk"
        raise bad_file(path, f"cannot be read: {e}", "a readable file", advice) from e
    except Exception as e:  # parsers of untrusted bytes raise errors of any type
        reason = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        raise bad_file(
            path, f"is damaged or is no {kind} ({reason})", expected, DOWNLOAD_AGAIN
        ) from e


def finite(t: Tensor) -> bool:
    """Return whether all values are finite, without a copy: NaN spreads to both ends."""
    if t.numel() == 0:
        return True
    try:
        ends = torch.aminmax(t)
    except RuntimeError:  # of float16, on the CPU of torch 2.1; of float8
        ends = torch.aminmax(t.float())
    return all(bool(torch.isfinite(end)) for end in ends)
