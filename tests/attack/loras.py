"""Attacks on the reading of LoRA files: made by hand, and changed by chance."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from lib_accel.errors import AccelError, printable
from lib_accel.model.random_weights import random_weights
from lib_accel.model.weight_files import finite
from lib_accel.runtime.lora.files import Merger, random_deltas, read_lora, save_lora

from ..tools.checkpoint_files import TINY
from .checkpoints import changed
from .safetensors_files import FILES as SAFETENSORS

LAYER = "lora_unet_input_blocks_1_1_proj_in"
UP, DOWN, ALPHA = (f"{LAYER}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha"))
NAN, INFINITE = float("nan"), float("inf")


def good() -> dict[str, Tensor]:
    """Return a LoRA of rank 2 for one layer, a convolution of 32 channels."""
    return {UP: torch.ones(32, 2), DOWN: torch.ones(2, 32), ALPHA: torch.tensor(2.0)}


FILES: dict[str, dict[str, Any]] = {
    **{f"{part} is {text}": {key: value} for part, key in (("up", UP), ("down", DOWN))
       for text, value in {
           "a scalar": torch.tensor(1.0),
           "empty": torch.ones(0),
           "a vector": torch.ones(32),
           "of rank 0": torch.ones((32, 0) if key == UP else (0, 32)),
           "for another layer": torch.ones(64, 2) if key == UP else torch.ones(2, 64),
           "of another rank": torch.ones(32, 3) if key == UP else torch.ones(3, 32),
           "of six dimensions": torch.ones(1, 1, 1, 1, 1, 1),
           "NaN": torch.full((32, 2) if key == UP else (2, 32), NAN),
           "infinite": torch.full((32, 2) if key == UP else (2, 32), -INFINITE),
           "whole numbers": torch.ones((32, 2) if key == UP else (2, 32), dtype=torch.int8),
           "truth": torch.ones((32, 2) if key == UP else (2, 32), dtype=torch.bool),
           "complex": torch.ones((32, 2) if key == UP else (2, 32), dtype=torch.complex64),
           "missing": None,
       }.items()},
    "both of rank 0": {UP: torch.ones(32, 0), DOWN: torch.ones(0, 32)},
    "both scalars": {UP: torch.tensor(1.0), DOWN: torch.tensor(1.0)},
    "alpha has two values": {ALPHA: torch.ones(2)},
    "alpha has no value": {ALPHA: torch.ones(0)},
    "alpha is NaN": {ALPHA: torch.tensor(NAN)},
    "alpha is infinite": {ALPHA: torch.tensor(INFINITE)},
    "alpha is complex": {ALPHA: torch.tensor(1j)},
    "a part more": {f"{LAYER}.dora_scale": torch.ones(1, 32)},
    "a part without a name": {LAYER: torch.ones(1)},
    "a layer of another UNet": {"lora_unet_output_blocks_11_1_proj_in.alpha": torch.ones(1)},
    "an empty name": {"": torch.ones(1)},
    "control characters": {"lora_unet_\x1b[2J\r\n.alpha": torch.ones(1)},
    "only a text encoder": {UP: None, DOWN: None, ALPHA: None, "lora_te_x.alpha": torch.ones(1)},
    "nothing": {UP: None, DOWN: None, ALPHA: None},
}  # fmt: skip
"""By what is wrong: what is changed in a good file; None leaves a tensor out."""

GOOD: dict[str, dict[str, Any]] = {
    "no alpha": {ALPHA: None},
    "alpha is zero": {ALPHA: torch.tensor(0.0)},
    "alpha is negative": {ALPHA: torch.tensor(-3.0)},
    "alpha is a whole number": {ALPHA: torch.tensor(2)},
    "alpha is a list of one": {ALPHA: torch.ones(1, 1)},
    "half precision": {UP: torch.ones(32, 2).half(), DOWN: torch.ones(2, 32).bfloat16()},
    "a convolution": {UP: torch.ones(32, 2, 1, 1), DOWN: torch.ones(2, 32, 1, 1)},
    "huge values": {UP: torch.full((32, 2), 3e38), DOWN: torch.full((2, 32), 3e-38)},
}


def refusal(path: Path) -> str | None:
    """Read a LoRA and merge it. Return the sentence that refuses it, or None."""
    sentence, deltas = None, {}
    try:
        deltas = read_lora(path, TINY)
    except AccelError as e:
        sentence = str(e)
    if sentence is not None:
        assert printable(path.name) in sentence, sentence
        assert sentence.isprintable(), sentence
        return sentence
    parameters = random_weights(TINY, torch.float32, 0)
    Merger(parameters).set([(deltas, 0.8)])
    assert all(finite(d.up) and finite(d.down) and math.isfinite(d.scale) for d in deltas.values())
    return None


def made_by_hand(folder: Path, count: int, seed: int) -> int:
    """Read files that are each wrong in one way, and some that are odd but good."""
    names = sorted({*FILES, *GOOD})
    random.Random(seed).shuffle(names)
    path = folder / "lora.safetensors"
    for name in names[:count]:
        changes = FILES.get(name) or GOOD[name]
        tensors = {key: value for key, value in {**good(), **changes}.items() if value is not None}
        save_file(tensors, path)
        sentence = refusal(path)
        assert (sentence is None) == (name in GOOD), f"{name}: {sentence or 'was read'}"
    return min(count, len(names))


def no_loras(folder: Path, count: int, seed: int) -> int:
    """Read the malformed checkpoints as LoRAs: their containers are wrong in every way."""
    names = sorted(SAFETENSORS)
    random.Random(seed).shuffle(names)
    for name in names[:count]:
        path = folder / f"{name.replace(' ', '-')}.safetensors"
        SAFETENSORS[name](path)
        assert refusal(path) is not None, name
        path.unlink()
    return min(count, len(names))


def mutated(folder: Path, count: int, seed: int) -> int:
    """Change a good file somewhere."""
    dice, path = random.Random(seed), folder / "lora.safetensors"
    save_lora(path, TINY, random_deltas(TINY, rank=2, seed=0))
    contents = (path.read_bytes(), save(good()))
    for n in range(count):
        path.write_bytes(changed(contents[n % 2], dice))
        refusal(path)
    return count


Attack = Callable[[Path, int, int], int]
ATTACKS: dict[str, tuple[Attack, int, int]] = {
    "LoRAs made by hand": (made_by_hand, len(FILES | GOOD), len(FILES | GOOD)),
    "checkpoints as LoRAs": (no_loras, 5, len(SAFETENSORS)),
    "mutated LoRAs": (mutated, 40, 1000),
}
