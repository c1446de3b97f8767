"""Attacks on the reading of checkpoints: files changed by chance or by hand, and evil pickles."""

from __future__ import annotations

import contextlib
import pickle
import random
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import evil_files, pickle_files, safetensors_files
from .kit import refusal, weights


def mutated(folder: Path, count: int, seed: int) -> int:
    """Change a good file of each format somewhere: bits, numbers, pieces, its length."""
    dice, tensors = random.Random(seed), weights()
    originals = {name: folder / name for name in ("a.safetensors", "a.ckpt", "legacy.ckpt")}
    save_file(tensors, originals["a.safetensors"])
    torch.save({"state_dict": tensors}, originals["a.ckpt"])
    torch.save(tensors, originals["legacy.ckpt"], _use_new_zipfile_serialization=False)
    contents = [(path, path.read_bytes()) for path in originals.values()]
    assert [refusal(path) for path, _ in contents] == [None] * 3
    for n in range(count):
        path, content = contents[n % 3]
        path.write_bytes(changed(content, dice))
        refusal(path)
    return count


def changed(content: bytes, dice: random.Random) -> bytes:
    """Change one to eight places. Most are at the ends, where the formats keep what they say."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 8))):
        near = min(len(data), dice.choice((64, 4096, 40_000, len(data))))
        at = dice.randrange(near) if dice.random() < 0.6 else len(data) - 1 - dice.randrange(near)
        size = dice.choice((1, 2, 4, 8, 100))
        kind = dice.randrange(6)
        if kind < 2:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 2:
            numbers = (0, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1, dice.randrange(2**64))
            data[at : at + 8] = dice.choice(numbers).to_bytes(8, "little")
        elif kind == 3:
            data[at:at] = dice.choice((dice.randbytes(size), data[at : at + size]))
        elif kind == 4:
            del data[at : at + size]
        elif dice.random() < 0.2:
            del data[max(at, 1) :]
        else:
            data[at : at + size] = bytes(size)
    return bytes(data) or b"x"


def malformed(folder: Path, count: int, seed: int) -> int:
    """Read files that are each wrong in one way. All but the named ones must be refused."""
    files = [(".safetensors", name, make) for name, make in safetensors_files.FILES.items()]
    files += [(".ckpt", name, make) for name, make in pickle_files.FILES.items()]
    good = {".safetensors": safetensors_files.GOOD, ".ckpt": pickle_files.GOOD}
    random.Random(seed).shuffle(files)
    for suffix, name, make in files[:count]:
        path = folder / f"{name.replace(' ', '-')}{suffix}"
        make(path)
        sentence = refusal(path)
        assert (sentence is None) == (name in good[suffix]), f"{path.name}: {sentence or 'read'}"
        path.unlink()
    return min(count, len(files))


def evil(folder: Path, count: int, seed: int) -> int:
    """Read pickles that would run something. Nothing is run, though it would be by pickle."""
    names = sorted(evil_files.FILES)
    random.Random(seed).shuffle(names)
    for name in names[:count]:
        path, marker = folder / f"{name.replace(' ', '-')}.ckpt", folder / "ran"
        load = evil_files.FILES[name](path, marker)
        assert refusal(path) is not None, f"{name} was read"
        assert not marker.exists(), f"{name} ran"
        with contextlib.suppress(pickle.UnpicklingError, RuntimeError, AttributeError, TypeError):
            load(path)
        assert marker.exists(), f"{name} is harmless, so it tests nothing"
        marker.rmdir()
    return min(count, len(names))


MALFORMED = len(safetensors_files.FILES) + len(pickle_files.FILES)
ATTACKS = {
    "mutated checkpoints": (mutated, 60, 1500),
    "malformed checkpoints": (malformed, MALFORMED, MALFORMED),
    "evil pickles": (evil, len(evil_files.FILES), len(evil_files.FILES)),
}
