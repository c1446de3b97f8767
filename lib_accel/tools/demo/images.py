"""The images of the demonstration: made step by step in turn with acceleration off and on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from ..bench.measure import synchronize
from .sampling import Conditions, Denoiser, sample


@dataclass
class Picture:
    """One sampled picture: its latents `[1, 4, h, w]` and the seconds of each step."""

    label: str  # "off", "on", "off, LoRA" or "on, LoRA"
    latent: Tensor
    seconds: list[float] = field(default_factory=list)
    first: Tensor | None = None  # the latents after the first step


def make_pictures(
    unets: Mapping[str, Denoiser], conditions: Conditions, steps: int, only: int | None = None
) -> list[Picture]:
    """Make a picture with each UNet, step by step in turn; stop after `only` steps.

    Whatever slows the machine meanwhile slows all of them.
    """
    pictures = [Picture(label, conditions.latent) for label in unets]
    running: list[Iterator[Tensor]] = [sample(unet, conditions, steps) for unet in unets.values()]
    count = min(steps, only or steps)
    label, total = " / ".join(unets), count * len(unets)
    progress = tqdm(total=total, desc=label, leave=False, file=sys.stderr, disable=None)
    with torch.no_grad(), progress as bar:
        for _ in range(count):
            for picture, latents in zip(pictures, running, strict=True):
                start = time.perf_counter()
                picture.latent = next(latents)
                synchronize(conditions.latent.device)
                picture.seconds.append(time.perf_counter() - start)
                picture.first = picture.latent if picture.first is None else picture.first
                bar.update()
    return pictures
