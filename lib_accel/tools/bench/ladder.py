"""The ladder: variants of the same UNet call, one a row, measured in one process.

Every group of rows (`Variant.group`) has its own copy of the weights, all with the same values:
building compiled code changes the memory layout of the weights it reads, which must not change
what another row is timed with. Where all copies fit into the device's memory, all rows are timed in
turn, so that a machine that becomes slower or faster does so for all of them. Where they do not
fit (SDXL on a card of 12 GB), the groups take turns of a few rounds: one copy is in device memory
at a time, every group has a turn before the first has its next, and the result says so. Rows of
one group are always timed in turn. The figures are medians over all rounds.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...compile.jobs import Job
from ...compile.session import Session
from ...config import Config
from ...model.architecture import Architecture
from ...model.precision import relative_error
from ...model.random_weights import random_weights
from .loras import calls_with_loras, changes_of_loras, drawn_loras, places
from .measure import (
    Call,
    Inputs,
    Row,
    flops,
    interleave,
    kernels,
    machine_of,
    matmul_rate,
    or_left_out,
    precise_call,
    timed,
)
from .variants import DEFAULT, VARIANTS, Built, Setup, build
from .weights import WeightCopy, copies_that_fit

TURNS = 3
"""How often each group has its turn where the copies of the weights do not fit together."""

MERGED = ("stock", "reference", "eager", "kernels", "jit", "aoti", "tensorrt")
"""Groups whose code reads the weights in each call, so that LoRAs can be merged beneath it."""


@dataclass(frozen=True)
class Plan:
    """What one run measures. `size` in pixels, `tokens` is the length of the prompt's embedding."""

    architecture: Architecture
    device: torch.device
    dtype: torch.dtype
    config: Config = field(default_factory=Config)
    variants: Sequence[str] = DEFAULT
    size: int = 512
    batch: int = 2
    tokens: int = 77
    rounds: int = 5
    loras: Sequence[int] = (0,)  # numbers of merged LoRAs
    profile: Sequence[str] | bool = ()  # rows whose kernels are listed; True: the last that runs


def make_inputs(
    a: Architecture, batch: int, size: int, tokens: int, device: torch.device, dtype: torch.dtype
) -> Inputs:
    """Return random inputs of a UNet call, always the same ones. `size` in pixels."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, a.in_channels, size // 8, size // 8, generator=g)
    context = torch.randn(batch, tokens, a.context_dim, generator=g)
    y = torch.randn(batch, a.adm_channels, generator=g) if a.adm_channels else None
    timesteps = torch.full((batch,), 500.0)
    x, timesteps, context = (t.to(device, dtype) for t in (x, timesteps, context))
    return x, timesteps, context, None if y is None else y.to(device, dtype)


class Ladder:
    """One run of the ladder. `say` receives progress in words, `wait` waits for a compiler.

    `on_row` receives each row twice: before it is built, and built, with the time of one call.
    `values` are the weights by name, on the CPU; by default they are drawn.
    """

    def __init__(
        self,
        plan: Plan,
        say: Callable[[str], object] = lambda text: None,
        wait: Callable[[Job], object] = Job.wait,
        on_row: Callable[[Row], object] = lambda row: None,
        values: Mapping[str, Tensor] | None = None,
    ):
        self.plan, self._say, self._wait, self._on_row = plan, say, wait, on_row
        self._values = values or {
            name: p.data for name, p in random_weights(plan.architecture, plan.dtype, 0).items()
        }
        self.weight_bytes = sum(value.nbytes for value in self._values.values())
        self.inputs = make_inputs(
            plan.architecture, plan.batch, plan.size, plan.tokens, plan.device, plan.dtype
        )
        self.groups = list(dict.fromkeys(VARIANTS[name].group for name in plan.variants))
        fitting = copies_that_fit(self.weight_bytes, plan.device)
        self.together = fitting >= len(self.groups)
        self._session = Session()
        self._copies: dict[str, WeightCopy] = {}
        self.rows = {name: Row(name) for name in plan.variants}
        self._built: dict[str, Built] = {}

    def measure(self) -> dict[str, Any]:
        """Build and time every row; return the result, ready for JSON."""
        plan = self.plan
        with torch.no_grad():
            self._build()
            self._time()
            rate = matmul_rate(plan.dtype, plan.device)
            loras, changes = self._loras()
            profiles = self._profiles()
        return {
            **self._conditions(),
            **self._speed(rate),
            "loras": loras,
            "lora_changes": changes,
            "kernels": profiles,
        }

    def _profiles(self) -> dict[str, list[dict[str, Any]]]:
        built, wanted, profiles = self._built, self.plan.profile, {}
        if isinstance(wanted, bool):
            wanted = [n for n in self.plan.variants if n in built][-1:] if wanted else ()
        for name in (n for n in wanted if n in built):
            with self._loaded([VARIANTS[name].group]):
                profiles[name] = kernels(built[name].call, self.plan.device)
        return profiles

    # -- weights in device memory

    @contextlib.contextmanager
    def _loaded(self, groups: Sequence[str]) -> Iterator[None]:
        """Keep the weights of these groups in device memory; later only if all fit together."""
        for group in groups:
            if group in self._copies:
                self._copies[group].load()
            else:
                plan = self.plan
                self._copies[group] = WeightCopy(plan.architecture, self._values, plan.device)
        try:
            yield
        finally:
            if not self.together:
                for group in groups:
                    for built in self._rows_of(group).values():
                        built.release()
                    self._copies[group].unload()

    def _turns(self) -> list[list[str]]:
        """The groups that have rows, those together that are in device memory together."""
        groups = [group for group in self.groups if self._rows_of(group)]
        return [groups] if self.together else [[group] for group in groups]

    def _rows_of(self, *groups: str) -> dict[str, Built]:
        return {n: built for n, built in self._built.items() if VARIANTS[n].group in groups}

    def _calls_of(self, *groups: str) -> dict[str, Call]:
        return {name: built.call for name, built in self._rows_of(*groups).items()}

    # -- building and timing

    def _build(self) -> None:
        plan = self.plan
        if not self.together:
            self._say("the copies of the weights do not fit together: groups of rows take turns")
        with self._loaded(self.groups[:1]):
            self._say("computing the call at higher precision ...")
            parameters = self._copies[self.groups[0]].parameters
            reference = precise_call(plan.architecture, parameters, *self.inputs)
        for group in self.groups:
            with self._loaded([group]):
                for name in (n for n in plan.variants if VARIANTS[n].group == group):
                    self._build_row(name, group, reference)

    def _build_row(self, name: str, group: str, reference: Tensor) -> None:
        plan, row = self.plan, self.rows[name]
        setup = Setup(
            plan.architecture,
            self._copies[group],
            self.inputs,
            plan.config,
            self._session,
            self._wait,
        )
        self._say(f"preparing {name} ...")
        self._on_row(row)
        with or_left_out(row, self._say):
            built, row.compile_s = build(name, setup)
            row.error = relative_error(built.call(), reference)
            row.one_call_s = timed(built.call, plan.device)[0]
            self._built[name] = built
        if name in self._built:
            self._on_row(row)

    def _time(self) -> None:
        turns = 1 if self.together else min(TURNS, self.plan.rounds)
        rounds = math.ceil(self.plan.rounds / turns)
        total = turns * (1 + rounds) * len(self._built)
        with tqdm(total=total, desc="calls", disable=None) as bar:
            for _ in range(turns):
                for groups in self._turns():
                    with self._loaded(groups):
                        calls = self._calls_of(*groups)
                        interleave(calls, self.rows, self.plan.device, rounds, bar.update)

    def _loras(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Measure calls with merged LoRAs, and changes of the set of LoRAs."""
        plan, a = self.plan, self.plan.architecture
        merged = [group for group in self.groups if group in MERGED and self._rows_of(group)]
        if list(plan.loras) == [0] or not merged:
            return [], []
        seconds: dict[int, dict[str, float]] = {count: {} for count in plan.loras}
        for groups in [merged] if self.together else [[group] for group in merged]:
            with self._loaded(groups):
                given = [(self._copies[g].parameters, self._calls_of(g)) for g in groups]
                found = calls_with_loras(
                    a, given, self._values, plan.loras, plan.rounds, plan.device
                )
            for count, by_name in found.items():
                seconds[count] |= by_name
        with self._loaded(merged[-1:]):
            parameters = self._copies[merged[-1]].parameters
            drawn = drawn_loras(a, max(plan.loras), plan.dtype)
            changes = {
                place: changes_of_loras(drawn, parameters, place, plan.rounds, plan.device)
                for place in places(plan.device)
            }
        return (
            [{"loras": count, "seconds": s} for count, s in seconds.items()],
            [{"bases": place, "seconds": s} for place, s in changes.items()],
        )

    # -- the result

    def _conditions(self) -> dict[str, Any]:
        plan = self.plan
        machine = {**machine_of(plan.device), "cores": os.cpu_count()}
        if plan.device.type == "cuda":
            machine["cuda"] = str(torch.version.cuda)
            machine["cudnn"] = str(torch.backends.cudnn.version())
        return {
            "date": datetime.date.today().isoformat(),
            "architecture": plan.architecture.name,
            "device": plan.device.type,
            "size": plan.size,
            "batch": plan.batch,
            "tokens": plan.tokens,
            "dtype": str(plan.dtype).removeprefix("torch."),
            "rounds": plan.rounds,
            "machine": machine,
            "weight_bytes": self.weight_bytes,
            "weight_copies": len(self.groups),
            "together": self.together,
        }

    def _speed(self, rate: float) -> dict[str, Any]:
        operations = flops(self.plan.architecture, self.inputs)
        return {
            "flops": operations,
            "matmul_flops_per_s": rate,
            "floor_s": operations / rate,
            "rows": [self._row(row, operations, rate) for row in self.rows.values()],
        }

    def _row(self, row: Row, operations: int, rate: float) -> dict[str, Any]:
        if not row.seconds:
            return {**row.to_dict(), "of_matmul_rate": None}
        row.note = self._built[row.name].note() or ""
        return {
            **row.to_dict(),
            "of_matmul_rate": operations / row.median / rate,
            "peak_bytes": self.weight_bytes + row.peak_bytes,
        }
