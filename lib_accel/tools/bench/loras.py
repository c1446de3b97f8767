"""The ladder with LoRAs: seconds of a call with merged LoRAs, and seconds to change the set."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
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


def changes_of_loras(
    architecture: Architecture,
    parameters: Mapping[str, nn.Parameter],
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, dict[str, float]]:
    """Return the median seconds of changes of the LoRA set, by where base weights are kept.

    The factors of the LoRAs lie in ordinary memory, in `dtype`.
    """
    a, b = (_in_dtype(random_deltas(architecture, RANK, seed), dtype) for seed in (1, 2))
    changes: dict[str, list[tuple[Deltas, float]]] = {
        "first": [(a, 0.8)],
        "another": [(b, 0.8)],
        "strength alone": [(b, 0.5)],
        "two": [(a, 0.8), (b, 0.5)],
        "none": [],
    }
    places = ("gpu", "pinned", "host") if device.type == "cuda" else ("host",)
    return {place: _seconds(changes, parameters, place, rounds, device) for place in places}


def _in_dtype(deltas: Deltas, dtype: torch.dtype) -> Deltas:
    return {n: replace(f, up=f.up.to(dtype), down=f.down.to(dtype)) for n, f in deltas.items()}


def _seconds(
    changes: Mapping[str, list[tuple[Deltas, float]]],
    parameters: Mapping[str, nn.Parameter],
    place: str,
    rounds: int,
    device: torch.device,
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in changes}
    for _ in range(min(rounds, 7)):
        merger = Merger(parameters, place)
        for name, loras in changes.items():
            if device.type == "cuda":
                torch.cuda.empty_cache()  # the WebUI does so before it reads networks
            seconds[name].append(timed(lambda m=merger, s=loras: m.set(s), device)[0])
    return {name: statistics.median(s) for name, s in seconds.items()}
