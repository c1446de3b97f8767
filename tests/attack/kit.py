"""Reads a file as the commands do, and sees that it ends well: read, or refused in a sentence."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import torch
from torch import Tensor

from lib_accel.errors import AccelError, printable
from lib_accel.model.random_weights import random_weights
from lib_accel.tools.checkpoints.reading import LDM_PREFIX, open_checkpoint

from ..tools.checkpoint_files import TINY

MOST_SECONDS, MOST_BYTES = 10.0, 300 * 2**20


def weights() -> dict[str, Tensor]:
    """Return the weights of a tiny UNet by their names in a checkpoint."""
    made = random_weights(TINY, torch.float16, seed=5)
    return {LDM_PREFIX + name: p.data for name, p in made.items()}


def peak_bytes() -> int:
    """Return the most memory that this process has had so far."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def harmless(text: str) -> bool:
    """Return whether a terminal only shows the text."""
    return all(c.isprintable() or c == "\n" for c in text)


def refusal(path: Path) -> str | None:
    """Read a checkpoint wholly. Return the sentence that refuses it, None where it is read.

    Raises AssertionError where that takes long or much memory, or where the sentence could harm a
    terminal or does not name the file; any exception of another type passes through.
    """
    began, before = time.process_time(), peak_bytes()
    sentence = None
    try:
        checkpoint = open_checkpoint(path)
        checkpoint.architecture()
        checkpoint.load_unet(dtype=torch.float32)
    except AccelError as e:
        sentence = str(e)
    took, more = time.process_time() - began, peak_bytes() - before
    assert took < MOST_SECONDS, f"{path.name}: {took:.0f} s"
    assert more < MOST_BYTES + 4 * path.stat().st_size, f"{path.name}: {more >> 20} MiB"
    if sentence is not None:
        assert printable(path.name) in sentence, sentence
        assert sentence.isprintable(), sentence
    return sentence
