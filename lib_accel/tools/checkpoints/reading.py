"""Reading a UNet from a checkpoint file. (The WebUI reads its own.)

Opening a file reads names, shapes and dtypes. Loading maps the file and takes the UNet's tensors
alone.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import BadWeights, UnsupportedArchitecture, printable
from ...model.architecture import Architecture
from ...model.random_weights import random_weights
from ...model.reading import TRANSFORMERS, Shape, kind_of
from ...model.weight_files import DOWNLOAD_AGAIN, Stored, bad_file, finite
from ...runtime.bound.weights import COMPUTE_DTYPES
from .formats import A_CHECKPOINT, CHOOSE_ANOTHER, LDM_PREFIX, file_format

PREFIXES = (LDM_PREFIX, "diffusion_model.", "")

_WITHOUT_PREFIX = ("time_embed.", "input_blocks.", "middle_block.", "output_blocks.")
"""How the names of a UNet start that has no prefix."""

_OTHER_FILES = {
    "lora_": "a LoRA",
    "unet.down_blocks.": "a LoRA in the diffusers layout",
    "down_blocks.": "a UNet in the diffusers layout; convert it to a single-file checkpoint",
    "encoder.": "a VAE",
    "first_stage_model.": "a VAE",
    "control_model.": "a ControlNet",
    **{start: f"{kind}, not a UNet" for start, kind in TRANSFORMERS.items()},
    "cond_stage_model.": "a text encoder",
    "text_model.": "a text encoder",
}
"""What a file without a UNet is, by how its names start."""


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds a UNet. It keeps no file open."""

    path: Path
    unet_prefix: str
    stored: Mapping[str, Stored]  # the UNet's tensors, without the prefix

    def shapes(self) -> dict[str, Shape]:
        """Return the shapes of the UNet's tensors, by name without the prefix."""
        return {name: s.shape for name, s in self.stored.items()}

    def dtypes(self) -> dict[torch.dtype, int]:
        """Return how many of the UNet's tensors are stored in each dtype, most first."""
        return dict(collections.Counter(s.dtype for s in self.stored.values()).most_common())

    def architecture(self) -> Architecture:
        """Return the UNet's architecture. Raises UnsupportedArchitecture, naming key or shape."""
        try:
            return Architecture.from_shapes(self.shapes())
        except UnsupportedArchitecture as e:
            where = self.unet_prefix or "no prefix"
            text = f"{self.path}: {e} (names are those after {where})"
            raise UnsupportedArchitecture(printable(text)) from e

    def load_unet(
        self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> dict[str, nn.Parameter]:
        """Return the UNet's weights by name without the prefix, as stored or in `dtype`.

        On the CPU, weights as stored are the mapped file itself; changing one does not change the
        file. Raises BadWeights where values are not finite and, without `dtype`, where the file
        mixes dtypes or has one that nothing computes in.
        """
        if dtype is None:
            self._check_dtypes()
        out: dict[str, nn.Parameter] = {}
        bad: list[str] = []
        _, tensors = file_format(self.path)
        for full, tensor in tensors(self.path, [self.unet_prefix + name for name in self.stored]):
            try:
                loaded = tensor.to(device, dtype)
            except (MemoryError, RuntimeError) as e:
                raise BadWeights(
                    f"{self.path}: there is no room for its weights on {device} "
                    f"({printable(str(e).splitlines()[0])}). Expected free memory. End other "
                    "programs, or choose a smaller model"
                ) from e
            if not finite(loaded):
                bad.append(f"{full} has {_not_finite(tensor, loaded)}")
            out[full[len(self.unet_prefix) :]] = nn.Parameter(loaded, requires_grad=False)
        if bad:
            more = f", and {len(bad) - 3} more tensors" if len(bad) > 3 else ""
            text = (
                f"{self.path} holds values that are NaN or infinite: {'; '.join(bad[:3])}{more}. "
                f"Expected finite weights. {DOWNLOAD_AGAIN}; if they appear in a conversion, "
                "load it as bfloat16 or float32"
            )
            raise BadWeights(printable(text))
        return out

    def _check_dtypes(self) -> None:
        found = self.dtypes()
        if len(found) == 1 and next(iter(found)) in COMPUTE_DTYPES:
            return
        parts = []
        for dtype, count in found.items():
            example = next(name for name, s in self.stored.items() if s.dtype == dtype)
            parts.append(f"{_name(dtype)} ({count} tensors, such as {self.unet_prefix}{example})")
        text = (
            f"{self.path} stores its UNet as {' and '.join(parts)}. Expected one of "
            f"{', '.join(map(_name, COMPUTE_DTYPES))} throughout. "
            "Say which dtype to convert the weights to"
        )
        raise BadWeights(printable(text))


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the header of a .safetensors, .ckpt, .pt or .pth file. Raises BadCheckpoint."""
    path = Path(path)
    headers, _ = file_format(path)
    stored = headers(path)
    for prefix in PREFIXES:
        if any(name.startswith(prefix or _WITHOUT_PREFIX) for name in stored):
            unet = {name[len(prefix) :]: s for name, s in stored.items() if name.startswith(prefix)}
            _check_numbers(path, prefix, unet)
            return Checkpoint(path, prefix, unet)
    kind = kind_of(stored, _OTHER_FILES) or "a file of a kind not known here"
    some = f"{len(stored)} tensors: {', '.join(sorted(stored)[:3]) or 'none'}"
    what = f"holds no UNet; it looks like {kind} ({some})"
    raise bad_file(path, what, A_CHECKPOINT, CHOOSE_ANOTHER)


def _check_numbers(path: Path, prefix: str, unet: Mapping[str, Stored]) -> None:
    for name, s in unet.items():
        if not s.dtype.is_floating_point:
            what = f"is quantised or no UNet: {prefix}{name} is stored as {_name(s.dtype)}"
            raise bad_file(path, what, "floating-point weights", CHOOSE_ANOTHER)
    needed = sum(math.prod(s.shape) * s.dtype.itemsize for s in unet.values())
    if needed > path.stat().st_size:  # several tensors are the same part of a pickle's file
        what = f"stores {path.stat().st_size} bytes for weights of {needed} bytes"
        raise bad_file(path, what, "a number for each weight", CHOOSE_ANOTHER)


def save_random_checkpoint(
    path: str | os.PathLike[str], architecture: Architecture, dtype: torch.dtype, seed: int
) -> None:
    """Write a .safetensors file with a UNet of random weights. It appears whole or not at all.

    Raises BadCheckpoint where it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise bad_file(path, "does not end in .safetensors", "a name that does", "Rename it")
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
    except Exception as e:  # safetensors has an exception of its own for a full disk
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink()
        expected = "a folder you can write to with room for the file"
        raise bad_file(path, f"cannot be written ({e})", expected, "Choose another") from e


def _not_finite(stored: Tensor, loaded: Tensor) -> str:
    count = f"{int((~torch.isfinite(loaded)).sum())} of {loaded.numel()}"
    if not finite(stored.float()):
        return count
    return f"{count} once converted from {_name(stored.dtype)} to {_name(loaded.dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
