"""Launches that the profiler counted, beside those that `bench --model` counted without a GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...compile.source_digest import source_digest
from ...errors import AccelError

CLASSES = (
    ("memory-bound", re.compile("triton_(poi|red|per)_")),
    ("attention", re.compile("flash|fmha|attention|sdpa", re.IGNORECASE)),
    ("convolution", re.compile("fprop|implicit|conv|cudnn|nchwTo|nhwcTo", re.IGNORECASE)),
    ("matrix product", re.compile("gemm|gemv|cutlass|nvjet|splitk|cublas|_mm_", re.IGNORECASE)),
)
"""How kernels are named, by the classes of the model; the rest is memory-bound.

The first that fits: Inductor names its kernels after the convolution whose bias they add, cuDNN has
attention of its own, and its convolutions are called implicit GEMMs."""


def beside_the_model(
    result: dict[str, Any], family: str, models: Sequence[str]
) -> list[dict[str, Any]]:
    """Return for each profiled row of a ladder what was launched, and what the model has.

    `models` are files that `read_model` reads.
    """
    conditions = {"family": family} | {n: result[n] for n in ("size", "batch", "tokens", "dtype")}
    found = [model for model in map(read_model, models) if conditions.items() <= model.items()]
    rows = []
    for name, kernels in result["kernels"].items():
        counted: dict[str, float] = {}
        for kernel in kernels:
            fitting = (of for of, pattern in CLASSES if pattern.search(kernel["name"]))
            of = next(fitting, "memory-bound")
            counted[of] = counted.get(of, 0.0) + kernel["launches"]
        of_model = (
            {
                "arch": model["arch"],
                "of_this_source": model["source"] == source_digest(),
                "launches": row["launches"],
                "classes": _grouped(row),
            }
            for model in found
            for row in model["rows"]
            if row["backend"] == name
        )
        launches = {"row": name, "launches": sum(counted.values()), "classes": counted}
        rows.append({**launches, "model": next(of_model, None)})
    return rows


def read_model(file: str) -> dict[str, Any]:
    """Read what `bench --model --json` prints. Raises AccelError for anything else."""
    try:
        model = json.loads(Path(file).read_text(encoding="utf-8"))
        if not {"rows", "arch", "source"} <= model.keys():
            raise ValueError("it has no rows, arch or source")
    except (OSError, ValueError, AttributeError) as e:
        raise AccelError(f"{file} is not what `bench --model --json` prints: {e}") from e
    return model


def _grouped(model: dict[str, Any]) -> dict[str, float]:
    grouped: dict[str, float] = {}
    for name, of in model["classes"].items():
        group = name if name in dict(CLASSES) else "memory-bound"
        grouped[group] = grouped.get(group, 0) + of["launches"]
    return grouped
