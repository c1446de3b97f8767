"""Reading a UNet from a checkpoint file, for the command line, the bench and the tests (the WebUI loads its own).

Opening reads names, shapes and dtypes only. Loading maps the file and takes the UNet's tensors alone. A file is data: pickles are read
with `weights_only`, so nothing in them runs.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import AccelError, BadCheckpoint, BadWeights, UnsupportedArchitecture
from ..model.architecture import TRANSFORMERS, Architecture, Shape, kind_of
from ..model.random_weights import random_weights
from ..runtime.weights import COMPUTE_DTYPES

LDM_PREFIX = "model.diffusion_model."
PREFIXES = (LDM_PREFIX, "diffusion_model.", "")

_BARE = (
    "time_embed.",
    "input_blocks.",
    "middle_block.",
    "output_blocks.",
)  # what a UNet without a prefix starts with
_OTHERS = {  # how the names of other files start, and what to call them
    "lora_": "a LoRA",
    "unet.down_blocks.": "a LoRA in the diffusers layout",
    "down_blocks.": "a UNet in the diffusers layout; convert it to a single-file checkpoint",
    "encoder.": "a VAE",
    "first_stage_model.": "a VAE",
    "control_model.": "a ControlNet",
    **{start: f"{what}, not a UNet" for start, what in TRANSFORMERS.items()},
    "cond_stage_model.": "a text encoder",
    "text_model.": "a text encoder",
}
_EXPECTED = f"Expected a Stable Diffusion checkpoint (its UNet's names start with {LDM_PREFIX})"
_AGAIN = "Download the file again, or choose another one"


@dataclass(frozen=True)
class Stored:
    """What the file's header says of a tensor."""

    shape: Shape
    dtype: torch.dtype


@dataclass(frozen=True)
class Format:
    headers: Callable[[Path], dict[str, Stored]]
    tensors: Callable[[Path, Iterable[str]], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds a UNet. It keeps no file open."""

    path: Path
    unet_prefix: str
    stored: Mapping[str, Stored]  # the UNet's tensors, without the prefix

    def shapes(self) -> dict[str, Shape]:
        return {name: s.shape for name, s in self.stored.items()}

    def dtypes(self) -> dict[torch.dtype, int]:
        """How many of the UNet's tensors are stored in each dtype, most first."""
        return dict(collections.Counter(s.dtype for s in self.stored.values()).most_common())

    def architecture(self) -> Architecture:
        """Raises UnsupportedArchitecture, naming the key or shape."""
        try:
            return Architecture.from_shapes(self.shapes())
        except UnsupportedArchitecture as e:
            raise UnsupportedArchitecture(
                f"{self.path}: {e} (names are those after {self.unet_prefix or 'no prefix'})"
            ) from e

    def load_unet(
        self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> dict[str, nn.Parameter]:
        """The UNet's weights without the prefix, as stored or in `dtype`. On the CPU and as stored they are the mapped file itself,
        privately: changing one does not change the file.

        Raises BadWeights where values are not finite, or, without `dtype`, where dtypes are mixed or are none to compute with.
        """
        if dtype is None:
            self._check_dtypes()
        out: dict[str, nn.Parameter] = {}
        bad: list[str] = []
        for full, tensor in _format(self.path).tensors(
            self.path, [self.unet_prefix + name for name in self.stored]
        ):
            loaded = tensor.to(device, dtype)
            if not _finite(loaded):
                wrong = int((~torch.isfinite(loaded)).sum())
                converted = _finite(tensor.float())
                how = (
                    f" once converted from {_name(tensor.dtype)} to {_name(loaded.dtype)}"
                    if converted
                    else ""
                )
                bad.append(f"{full} has {wrong} of {loaded.numel()}{how}")
            out[full[len(self.unet_prefix) :]] = nn.Parameter(loaded, requires_grad=False)
        if bad:
            more = f", and {len(bad) - 3} more tensors" if len(bad) > 3 else ""
            raise BadWeights(
                f"{self.path} holds values that are NaN or infinite: {'; '.join(bad[:3])}{more}. Expected finite weights. "
                f"{_AGAIN}; if they appear in a conversion, load it as bfloat16 or float32"
            )
        return out

    def _check_dtypes(self) -> None:
        found = self.dtypes()
        if len(found) == 1 and next(iter(found)) in COMPUTE_DTYPES:
            return
        parts = []
        for dtype, count in found.items():
            example = next(name for name, s in self.stored.items() if s.dtype == dtype)
            parts.append(f"{_name(dtype)} ({count} tensors, such as {self.unet_prefix}{example})")
        raise BadWeights(
            f"{self.path} stores its UNet as {' and '.join(parts)}. Expected one of {', '.join(map(_name, COMPUTE_DTYPES))} throughout. "
            "Say which dtype to convert the weights to"
        )


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the header of a .safetensors, .ckpt, .pt or .pth file. Raises BadCheckpoint."""
    path = Path(path)
    stored = _format(path).headers(path)
    for prefix in PREFIXES:
        if any(name.startswith(prefix or _BARE) for name in stored):
            unet = {name[len(prefix) :]: s for name, s in stored.items() if name.startswith(prefix)}
            _refuse_integers(path, prefix, unet)
            return Checkpoint(path, prefix, unet)
    kind = kind_of(stored, _OTHERS) or "of a kind not known here"
    some = ", ".join(sorted(stored)[:3]) or "none"
    raise BadCheckpoint(
        f"{path} holds no UNet; it looks like {kind} ({len(stored)} tensors: {some}). {_EXPECTED}. Choose another file"
    )


def save_random_checkpoint(
    path: str | os.PathLike[str], architecture: Architecture, dtype: torch.dtype, seed: int
) -> None:
    """Write a .safetensors file with a UNet of random weights under the real names. The file appears whole or not at all."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise BadCheckpoint(
            f"{path} does not end in .safetensors; expected a name that does. Rename it"
        )
    weights: dict[str, Tensor] = {
        LDM_PREFIX + name: p.data for name, p in random_weights(architecture, dtype, seed).items()
    }
    part: Path | None = None
    try:
        handle, name = tempfile.mkstemp(suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        save_file(weights, name)
        part.replace(path)
    except (
        Exception
    ) as e:  # safetensors has its own exception for a full disk, the system has others
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink()
        raise BadCheckpoint(
            f"{path} cannot be written ({e}). Expected a folder you can write to with room for the file. Choose another"
        ) from e


def _finite(t: Tensor) -> bool:
    """One pass without a copy: NaN spreads to both ends, infinity is one of them."""
    if t.numel() == 0:
        return True
    try:
        ends = torch.aminmax(t)
    except RuntimeError:  # of float16, on torch 2.1's CPU
        ends = torch.aminmax(t.float())
    return all(bool(torch.isfinite(end)) for end in ends)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _refuse_integers(path: Path, prefix: str, stored: Mapping[str, Stored]) -> None:
    for name, s in stored.items():
        if not s.dtype.is_floating_point:
            raise BadCheckpoint(
                f"{path}: {prefix}{name} is stored as {_name(s.dtype)}, as quantised models are. Expected floating-point weights. "
                "Choose a checkpoint that is not quantised"
            )


def _format(path: Path) -> Format:
    with _reading(path, "file"):
        if path.is_dir():
            raise BadCheckpoint(
                f"{path} is a folder. Expected one checkpoint file. Choose a file in it"
            )
        if not path.exists():
            raise BadCheckpoint(
                f"{path} does not exist. Expected a checkpoint file. Check the name"
            )
        if path.stat().st_size == 0:
            raise BadCheckpoint(f"{path} is empty. {_EXPECTED}. {_AGAIN}")
        path.open("rb").close()  # safetensors says "no such file" where permission is missing
    if path.suffix.lower() not in _FORMATS:
        raise BadCheckpoint(
            f"{path} ends in '{path.suffix}'. Expected {', '.join(_FORMATS)}. Choose another file"
        )
    return _FORMATS[path.suffix.lower()]


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Parsers of untrusted bytes raise whatever they like; the user gets one kind of error. Only library calls go in here."""
    try:
        yield
    except AccelError:
        raise
    except OSError as e:
        raise BadCheckpoint(
            f"{path} cannot be read: {e}. Expected a readable file. Check its permissions and the disk"
        ) from e
    except Exception as e:
        text = str(e)
        if forbidden := re.search(r"(?:GLOBAL|class|global:?)\s+([\w.]+\.\w+)", text):
            raise BadCheckpoint(
                f"{path} is a pickle that wants to run or build {forbidden[1]}; nothing of it was run. Expected tensors only. "
                "If you trust the file, convert it to .safetensors first; otherwise delete it"
            ) from e
        # torch advises to switch the protection off; that is not for the user
        reason = (
            type(e).__name__ if "weights_only" in text or not text else text.splitlines()[0][:200]
        )
        raise BadCheckpoint(
            f"{path} is damaged or is no {what} ({reason}). {_EXPECTED}. {_AGAIN}"
        ) from e


def _safetensors_headers(path: Path) -> dict[str, Stored]:
    out: dict[str, Stored] = {}
    with _reading(path, "safetensors file"), safe_open(str(path), framework="pt") as f:
        found = [(name, f.get_slice(name)) for name in f.keys()]  # noqa: SIM118 (safe_open is no mapping)
        for name, part in found:
            out[name] = Stored(tuple(part.get_shape()), _dtype(path, name, part.get_dtype()))
    return out


def _safetensors_tensors(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    with _reading(path, "safetensors file"):
        file = safe_open(str(path), framework="pt")
    with file as f:
        for name in names:
            with _reading(path, "safetensors file"):
                tensor = f.get_tensor(name)
            yield name, tensor


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


def _dtype(path: Path, name: str, code: str) -> torch.dtype:
    dtype = getattr(torch, _DTYPES.get(code, ""), None)
    if dtype is None:
        raise BadCheckpoint(
            f"{path}: {name} is stored as {code}, unknown to this torch. Expected {', '.join(_DTYPES)}. Choose another file"
        )
    return dtype


def _pickle(path: Path, device: str) -> dict[str, Tensor]:
    """The tensors of a `torch.save` file; those under `state_dict` where it has one. Mapped where the file is of the zip kind."""
    with _reading(path, "PyTorch checkpoint"):
        with path.open("rb") as f:
            zipped = f.read(4) == b"PK\x03\x04"
        loaded: Any = torch.load(str(path), map_location=device, weights_only=True, mmap=zipped)
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise BadCheckpoint(
            f"{path} holds a {type(loaded).__name__}. Expected a dictionary of tensors. Choose another file"
        )
    return {str(name): t.detach() for name, t in loaded.items() if isinstance(t, Tensor)}


def _pickle_headers(path: Path) -> dict[str, Stored]:
    return {name: Stored(tuple(t.shape), t.dtype) for name, t in _pickle(path, "meta").items()}


def _pickle_tensors(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    tensors = _pickle(path, "cpu")
    for name in names:
        if name not in tensors:
            raise BadCheckpoint(
                f"{path} has lost {name} since it was opened. Expected the same file. Open it again"
            )
        yield name, tensors[name]


_SAFETENSORS = Format(_safetensors_headers, _safetensors_tensors)
_PICKLE = Format(_pickle_headers, _pickle_tensors)
_FORMATS = {".safetensors": _SAFETENSORS, ".ckpt": _PICKLE, ".pt": _PICKLE, ".pth": _PICKLE}
