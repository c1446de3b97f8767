"""The ladder with LoRAs: seconds of a call with merged LoRAs, and seconds to change the set."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...model.architecture import Architecture
from ...runtime.lora.files import Merger, random_deltas
from ...runtime.lora.merging import LowRank, merge
from .measure import Call, timed

RANK = 32
STRENGTH = 0.5
Deltas = dict[str, LowRank]


def calls_with_loras(
    architecture: Architecture,
    groups: Sequence[tuple[Mapping[str, nn.Parameter], Mapping[str, Call]]],
    base: Mapping[str, Tensor],
    counts: Sequence[int],
    rounds: int,
    device: torch.device,
) -> dict[int, dict[str, float]]:
    """Return the median seconds of each call for each number of merged LoRAs.

    `groups` are (weights, the calls that read them); `base` holds the weights without LoRAs. The
    numbers are measured in turn, `rounds` times after one turn to warm up. A LoRA has rank 32 and
    changes all layers of all transformers.
    """
    loras = [random_deltas(architecture, RANK, seed) for seed in range(max(counts))]
    names = [name for _, calls in groups for name in calls]
    seconds: dict[int, dict[str, list[float]]] = {n: {name: [] for name in names} for n in counts}
    with tqdm(total=(1 + rounds) * len(counts) * len(names), desc="LoRAs", disable=None) as bar:
        for count in (1 + rounds) * list(counts):
            for parameters, calls in groups:
                _merge(parameters, base, loras, count)
                for name, call in calls.items():
                    call()  # the first call after a merge pays for memory that the merge freed
                    seconds[count][name].append(timed(call, device)[0])
                    bar.update()
    for parameters, _ in groups:
        _merge(parameters, base, loras, 0)
    return {
        n: {name: statistics.median(s[1:]) for name, s in by_name.items()}
        for n, by_name in seconds.items()
    }


def _merge(
    parameters: Mapping[str, nn.Parameter],
    base: Mapping[str, Tensor],
    loras: Sequence[Deltas],
    count: int,
) -> None:
    """Make the weights those with the first `count` LoRAs."""
    for name in loras[0] if loras else ():
        terms = [lora[name] for lora in loras[:count]]
        weight = parameters[name].detach()
        merge(weight, base[name], [replace(t, scale=t.scale * STRENGTH) for t in terms])


def drawn_loras(architecture: Architecture, count: int, dtype: torch.dtype) -> list[Deltas]:
    """Return LoRAs of random factors in ordinary memory, as many as changes need: 2 at least."""
    with ThreadPoolExecutor() as pool:  # the largest take a second each
        return [
            {n: replace(f, up=f.up.to(dtype), down=f.down.to(dtype)) for n, f in deltas.items()}
            for deltas in pool.map(
                lambda seed: random_deltas(architecture, RANK, seed), range(max(2, count))
            )
        ]


def places(device: torch.device) -> tuple[str, ...]:
    """Return where base weights can be kept, the fastest first."""
    return ("gpu", "pinned", "host") if device.type == "cuda" else ("host",)


def changes_of_loras(
    loras: Sequence[Deltas],
    parameters: Mapping[str, nn.Parameter],
    place: str,
    rounds: int,
    device: torch.device,
) -> dict[str, float]:
    """Return the median seconds of changes of the LoRA set, with base weights kept in `place`."""
    a, b, count = loras[0], loras[1], len(loras)
    changes: dict[str, list[tuple[Deltas, float]]] = {
        "first": [(a, 0.8)],
        "another": [(b, 0.8)],
        "strength alone": [(b, 0.5)],
        "two": [(a, 0.8), (b, 0.5)],
    }
    if count > 2:
        changes[f"{count} at once"] = [(lora, 0.5) for lora in loras]
        changes[f"{count}, strengths alone"] = [(lora, 0.3) for lora in loras]
    changes["none"] = []
    seconds: dict[str, list[float]] = {name: [] for name in changes}
    for _ in range(min(rounds, 7)):
        merger = Merger(parameters, place)
        for name, wanted in changes.items():
            if device.type == "cuda":
                torch.cuda.empty_cache()  # the WebUI does so before it reads networks
            seconds[name].append(timed(lambda m=merger, s=wanted: m.set(s), device)[0])
    return {name: statistics.median(s) for name, s in seconds.items()}
