"""Plain LoRA files for the command line: read, merge in place, take out again exactly.

Inside the WebUI its own Lora extension reads the files, of every network type; this is for running without it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import AUTO
from ..errors import BadCheckpoint
from ..model.architecture import Architecture
from ..model.diffusers_names import layer_aliases
from ..model.specs import SpatialTransformer
from ..model.unet import UNet
from .lora_bases import Bases
from .lora_merge import LowRank, merge

_log = logging.getLogger(__name__)


def read_lora(path: Path, architecture: Architecture) -> dict[str, LowRank]:
    """The file's UNet part by parameter name (`input_blocks.1.1.proj_in.weight`).

    Reads the kohya layout, with diffusers' or the checkpoint's layer names; text-encoder layers are skipped.
    Raises BadCheckpoint when the file cannot be read, fits no layer, or holds a kind of layer that is no plain LoRA.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as e:
        raise BadCheckpoint(
            f"{path} cannot be read as safetensors: {e}; expected a LoRA file"
        ) from e
    names = {
        "lora_unet_" + alias.replace(".", "_"): layer
        for layer, aliases in layer_aliases(architecture)
        for alias in aliases
    }
    shapes = {name: p.shape for name, p in UNet(architecture).named_parameters()}
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, part = key.partition(".")
        if not group.startswith("lora_te"):
            groups.setdefault(group, {})[part] = tensor
    deltas = {}
    for group, parts in groups.items():
        if group not in names:
            raise BadCheckpoint(
                f"{path}: the layer {group} is not in this UNet ({architecture.name}); the LoRA is for another architecture"
            )
        if parts.keys() - {"alpha"} != {"lora_up.weight", "lora_down.weight"}:
            raise BadCheckpoint(
                f"{path}: {group} holds {', '.join(sorted(parts))}; expected lora_up.weight, lora_down.weight and alpha alone"
            )
        up, down = parts["lora_up.weight"], parts["lora_down.weight"]
        made_for, weight = [up.shape[0], down[0].numel()], shapes[names[group] + ".weight"]
        if made_for != [weight[0], weight[1:].numel()] or up[0].numel() != down.shape[0]:
            raise BadCheckpoint(
                f"{path}: {group} is for a weight of {made_for}, here it is {list(weight)}; the LoRA is for another architecture"
            )
        alpha = parts.get("alpha")
        deltas[names[group] + ".weight"] = LowRank(
            up, down, float(alpha) / down.shape[0] if alpha is not None else 1.0
        )
    if not deltas:
        raise BadCheckpoint(
            f"{path} holds no UNet layers; expected keys such as lora_unet_..._to_q.lora_up.weight"
        )
    return deltas


class Merger:
    """Merges LoRAs into `parameters` in place. The base of every weight that was ever touched is kept: taking out is one exact copy.

    `where` bases are kept: one of config.LORA_BASES.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], where: str = AUTO):
        self._parameters, self._bases = parameters, Bases(where, _log.warning)
        self._base: dict[str, Tensor] = {}
        self._merged: set[str] = set()

    def set(self, loras: Sequence[tuple[Mapping[str, LowRank], float]]) -> int:
        """Make the weights base + sum of strength x delta; an empty list is the base. Returns how many weights were written."""
        wanted: dict[str, list[LowRank]] = {}
        for factors, strength in loras:
            for name, f in factors.items():
                wanted.setdefault(name, []).append(LowRank(f.up, f.down, f.scale * strength))
        touched = self._merged = self._merged | wanted.keys()  # all of them, should one fail
        for name in touched:
            p = self._parameters[name].detach()
            if name not in self._base:
                self._base[name] = self._bases.keep(p, p.device)
            merge(p, self._base[name], wanted.get(name, ()))
        self._merged = set(wanted)
        return len(touched)


def parse_tag(text: str) -> tuple[Path, float]:
    """`FILE:STRENGTH` or `FILE` (strength 1). A Windows path's own colon is no separator. Raises ValueError."""
    match = re.fullmatch(r"(.+?)(?::([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?))?", text)
    if not match:
        raise ValueError(f"{text!r} is no LoRA; expected FILE or FILE:STRENGTH")
    return Path(match[1]), float(match[2]) if match[2] else 1.0


def random_deltas(
    architecture: Architecture, rank: int, seed: int, scale: float = 0.3
) -> dict[str, LowRank]:
    """A LoRA of random weights over every transformer's layers: for demonstrations and benchmarks."""
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


def save_lora(path: Path, architecture: Architecture, deltas: Mapping[str, LowRank]) -> None:
    """Write the kohya layout, with diffusers' layer names."""
    out: dict[str, Tensor] = {}
    aliases = dict(layer_aliases(architecture))
    for name, delta in deltas.items():
        key = "lora_unet_" + aliases[name.removesuffix(".weight")][1].replace(".", "_")
        out[f"{key}.lora_up.weight"], out[f"{key}.lora_down.weight"] = delta.up, delta.down
        out[f"{key}.alpha"] = torch.tensor(delta.scale * delta.down.shape[0])
    save_file(out, path)
