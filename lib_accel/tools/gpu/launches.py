"""Launches that the profiler counted, beside those that `bench --model` counted without a GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import AccelError

CLASSES = (
    ("convolution", re.compile("fprop|implicit|conv|cudnn|nchwTo|nhwcTo", re.IGNORECASE)),
    ("attention", re.compile("flash|fmha|attention", re.IGNORECASE)),
    ("matrix product", re.compile("gemm|gemv|cutlass|nvjet|splitk|cublas|_mm_", re.IGNORECASE)),
)
"""How NVIDIA's and torch's kernels are named, by the classes of the model; the rest is
memory-bound. The first that fits: cuDNN has convolutions that are called implicit GEMMs."""


def beside_the_model(result: dict[str, Any], models: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each profiled row of a ladder what was launched, and what the model has.

    `models` are files that hold what `bench --model --json` prints. Raises AccelError where one
    cannot be read.
    """
    rows = []
    for name, kernels in result["kernels"].items():
        counted: dict[str, float] = {}
        for kernel in kernels:
            found = (of for of, pattern in CLASSES if pattern.search(kernel["name"]))
            of = next(found, "memory-bound")
            counted[of] = counted.get(of, 0.0) + kernel["launches"]
        model = next((row for row in _modelled(result, models) if row["backend"] == name), None)
        rows.append(
            {
                "row": name,
                "launches": sum(counted.values()),
                "classes": counted,
                "modelled_launches": model and model["launches"],
                "modelled_classes": model and _grouped(model),
            }
        )
    return rows


def _modelled(result: dict[str, Any], models: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for file in models:
        try:
            model = json.loads(Path(file).read_text(encoding="utf-8"))
            same = all(model[k] == result[k] for k in ("architecture", "size", "batch", "dtype"))
            rows += model["rows"] if same else []
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise AccelError(f"{file} is not what `bench --model --json` prints ({e!r})") from e
    return rows


def _grouped(model: dict[str, Any]) -> dict[str, float]:
    grouped: dict[str, float] = {}
    for name, of in model["classes"].items():
        group = name if name in dict(CLASSES) else "memory-bound"
        grouped[group] = grouped.get(group, 0) + of["launches"]
    return grouped
