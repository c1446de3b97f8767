"""Plain LoRA files without the WebUI: read them, merge them in place, remove them exactly.

In the WebUI its own Lora extension reads the files, of every network type.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...config import AUTO
from ...errors import BadCheckpoint, printable
from ...model.architecture import Architecture
from ...model.specs import SpatialTransformer
from ...model.unet import UNet
from ...model.weight_files import bad_file, finite, reading, require_file
from .batches import Merge, merge_all
from .diffusers_names import layer_aliases
from .merging import BasePlacement, LowRank

_log = logging.getLogger(__name__)

A_LORA = "a LoRA for a UNet (keys such as lora_unet_..._to_q.lora_up.weight)"

Deltas = Mapping[str, LowRank]
"""What a LoRA changes, by parameter name (`input_blocks.1.1.proj_in.weight`)."""


def read_lora(path: Path, architecture: Architecture) -> dict[str, LowRank]:
    """Return the UNet's part of a LoRA file, by parameter name.

    Reads the layout of kohya-ss/sd-scripts with the layer names of diffusers or of the checkpoint.
    Layers of text encoders are skipped. Raises BadCheckpoint when the file cannot be read, fits no
    layer, or holds a kind of layer that is no plain LoRA, or values that are not finite.
    """
    require_file(path, A_LORA)
    with reading(path, "safetensors file", A_LORA):
        tensors = load_file(path)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, part = key.partition(".")
        if not group.startswith("lora_te"):
            groups.setdefault(group, {})[part] = tensor
    if not groups:
        raise bad_file(path, "holds no UNet layers", A_LORA, "Choose another file")
    names = {
        "lora_unet_" + alias.replace(".", "_"): f"{layer}.weight"
        for layer, aliases in layer_aliases(architecture)
        for alias in aliases
    }
    shapes = {name: p.shape for name, p in UNet(architecture).named_parameters()}
    deltas = {}
    for group, parts in groups.items():
        if group not in names:
            raise BadCheckpoint(
                printable(
                    f"{path}: the layer {group} is not in this UNet ({architecture.name}); "
                    "the LoRA is for another architecture"
                )
            )
        deltas[names[group]] = _low_rank(f"{path}: {group}", parts, shapes[names[group]])
    return deltas


def _low_rank(where: str, parts: Mapping[str, Tensor], shape: torch.Size) -> LowRank:
    """Return the delta of one layer, whose weight has this shape. Raises BadCheckpoint."""

    def refused(text: str) -> BadCheckpoint:
        return BadCheckpoint(printable(f"{where} {text}"))

    if parts.keys() - {"alpha"} != {"lora_up.weight", "lora_down.weight"}:
        raise refused(
            f"holds {', '.join(sorted(parts))}; "
            "expected lora_up.weight, lora_down.weight and alpha alone"
        )
    up, down, alpha = parts["lora_up.weight"], parts["lora_down.weight"], parts.get("alpha")
    if min(up.ndim, down.ndim) < 2 or min(up.numel(), down.numel()) == 0:
        raise refused(
            f"has factors of {list(up.shape)} and {list(down.shape)}; "
            "expected matrices of rank 1 or more. Choose another file"
        )
    made_for = [up.shape[0], down[0].numel()]
    if made_for != [shape[0], shape[1:].numel()] or up[0].numel() != down.shape[0]:
        raise refused(
            f"is for a weight of {made_for}, here it is {list(shape)}; "
            "the LoRA is for another architecture"
        )
    if alpha is not None and alpha.numel() != 1:
        raise refused(f"has {alpha.numel()} values of alpha; expected one. Choose another file")
    for part, tensor in parts.items():
        if tensor.is_complex() or (part != "alpha" and not tensor.is_floating_point()):
            raise refused(f"stores {part} as {tensor.dtype}; expected floating-point numbers")
        if not finite(tensor):
            raise refused(
                f"holds NaN or infinite values in {part}, which would spoil every picture; "
                "expected finite ones. Download the file again, or choose another one"
            )
    return LowRank(up, down, 1.0 if alpha is None else float(alpha) / down.shape[0])


class Merger:
    """Merges LoRAs into `parameters` in place.

    It keeps the base weights of every weight that a LoRA has changed, so that removing a LoRA is an
    exact copy. `where` they are kept is one of `config.LORA_BASES`.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], where: str = AUTO):
        self._parameters, self._placement = parameters, BasePlacement(where, _log.warning)
        self._base: dict[str, Tensor] = {}
        self._merged: set[str] = set()

    def set(self, loras: Sequence[tuple[Deltas, float]]) -> int:
        """Make the weights the base weights plus the sum of strength x delta.

        `loras` are (deltas, strength); an empty list gives the base weights. Returns how many
        weights were written.
        """
        wanted: dict[str, list[LowRank]] = {}
        for deltas, strength in loras:
            for name, d in deltas.items():
                wanted.setdefault(name, []).append(LowRank(d.up, d.down, d.scale * strength))
        # before merging: if one merge fails, the next `set` must restore all of these
        touched = self._merged = self._merged | wanted.keys()
        weights = {name: self._parameters[name].detach() for name in touched}
        new = [name for name in touched if name not in self._base]
        for device in {weights[name].device for name in new}:
            here = [name for name in new if weights[name].device == device]
            bases = self._placement.keep([weights[name] for name in here], device)
            self._base.update(zip(here, bases, strict=True))
        # what is new is read from where it is: a base in ordinary memory is far from a GPU
        base = {**self._base, **{name: weights[name] for name in new}}
        merge_all([Merge(w, base[name], wanted.get(name, ())) for name, w in weights.items()])
        self._merged = set(wanted)
        return len(touched)

    def leave_video_memory(self) -> bool:
        """Move base weights out of video memory and return whether some were there."""
        there = {name: base for name, base in self._base.items() if base.is_cuda}
        self._base.update({name: self._placement.pin(base) for name, base in there.items()})
        return bool(there)


def parse_tag(text: str) -> tuple[Path, float]:
    """Parse `FILE:STRENGTH` or `FILE` (strength 1). Raises ValueError.

    The colon in a Windows path separates nothing.
    """
    match = re.fullmatch(r"(.+?)(?::([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?))?", text, re.DOTALL)
    strength = float(match[2] or 1) if match else math.nan
    if not match or not math.isfinite(strength):
        raise ValueError(f"{text!r} is no LoRA; expected FILE or FILE:STRENGTH")
    return Path(match[1]), strength


def random_deltas(
    architecture: Architecture, rank: int, seed: int, scale: float = 0.3
) -> dict[str, LowRank]:
    """Return a LoRA of random weights for all layers of all transformers.

    It is for demonstrations and benchmarks. `scale` is the size of a delta relative to its weight.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in UNet(architecture).named_parameters()}
    transformers = tuple(
        f"{name}." for name, layer in architecture.layers() if isinstance(layer, SpatialTransformer)
    )
    out = {}
    for layer, _ in layer_aliases(architecture):
        if layer.startswith(transformers):
            outputs, inputs, *kernel = shapes[f"{layer}.weight"]
            up = torch.randn(outputs, rank, *kernel, generator=generator) * scale * rank**-0.5
            down = torch.randn(rank, inputs, *kernel, generator=generator) * scale * inputs**-0.5
            out[f"{layer}.weight"] = LowRank(up, down, 1.0)
    return out


def save_lora(path: Path, architecture: Architecture, deltas: Deltas) -> None:
    """Write the layout of kohya-ss/sd-scripts, with diffusers' layer names.

    Raises BadCheckpoint where it cannot be written.
    """
    out: dict[str, Tensor] = {}
    aliases = dict(layer_aliases(architecture))
    for name, delta in deltas.items():
        key = "lora_unet_" + aliases[name.removesuffix(".weight")][1].replace(".", "_")
        out[f"{key}.lora_up.weight"], out[f"{key}.lora_down.weight"] = delta.up, delta.down
        out[f"{key}.alpha"] = torch.tensor(delta.scale * delta.down.shape[0])
    try:
        save_file(out, path)
    except (OSError, SafetensorError) as e:
        expected = "a folder you can write to with room for the file"
        raise bad_file(path, f"cannot be written ({e})", expected, "Choose another") from e
