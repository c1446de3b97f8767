"""The result of the ladder as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

GIB = 2**30
MOST_KERNELS = 25
"""Kernels in a table; the JSON has all."""


def table(result: dict[str, Any]) -> str:
    """Return the tables of a result of `Ladder.measure`."""
    lines = [*_conditions(result), "", *_rows(result)]
    if result["loras"]:
        seconds = {row["loras"]: row["seconds"] for row in result["loras"]}
        lines += _seconds("seconds a call, by merged LoRAs", seconds, lambda s: f"{s:.4g}")
        seconds = {row["bases"]: row["seconds"] for row in result["lora_changes"]}
        title = "ms to change the LoRAs, by where base weights are kept"
        lines += _seconds(title, seconds, lambda s: f"{1000 * s:.1f}")
    for name, kernels in result["kernels"].items():
        lines += _kernels(name, kernels)
    return "\n".join([*lines, "", _notes(result)])


def _conditions(r: dict[str, Any]) -> list[str]:
    m, tera = r["machine"], 1e12
    return [
        f"{r['architecture']}, {r['size']}x{r['size']}, batch {r['batch']}, {r['tokens']} tokens, "
        f"{r['dtype']}; {m['device_name']}, {m['threads']} threads, torch {m['torch']}, "
        f"triton {m['triton']}; {r['date']}.",
        f"{r['flops'] / tera:.3f} TFLOP a call; measured matmul rate "
        f"{r['matmul_flops_per_s'] / tera:.3f} TFLOP/s, so the floor is {r['floor_s']:.4g} s.",
    ]


def line(row: Mapping[str, Any], ratios: Callable[[float], tuple[str, ...]], count: int) -> str:
    """Return the line of a row of `Row.to_dict`, with `count` ratios of its seconds in the middle.

    A row that was not timed has its note instead.
    """
    seconds = row["median_s"]
    if not seconds:
        return f"| {row['name']} | - |{' |' * (count + 3)} {row['note']} |"
    cells = (
        row["name"],
        f"{seconds:.4g}",
        f"{row['min_s']:.4g} - {row['max_s']:.4g}",
        *ratios(seconds),
        f"{row['compile_s']:.1f}",
        f"{row['peak_bytes'] / GIB:.2f}",
        f"{row['error']:.1e}",
    )
    return f"| {' | '.join(cells)} |"


def _rows(r: dict[str, Any]) -> list[str]:
    base = next((row["median_s"] for row in r["rows"] if row["median_s"]), 0.0)
    lines = [
        f"| variant | s a call (median of {r['rounds']}) | min - max | speed-up | of matmul rate "
        "| built in s | peak GiB | error |",
        "| --- " * 8 + "|",
    ]
    lines += (
        line(row, lambda s, row=row: (_speed_up(base, s), f"{row['of_matmul_rate']:.0%}"), 2)
        for row in r["rows"]
    )
    notes = [f"- {row['name']}: {row['note']}" for row in r["rows"] if row["median_s"]]
    return [*lines, "", *(note for note in notes if not note.endswith(": "))]


def _speed_up(base: float, seconds: float) -> str:
    """Return the ratio of two times as the table shows them."""
    return f"{float(f'{base:.4g}') / float(f'{seconds:.4g}'):.2f}x"


def _seconds(
    title: str, rows: Mapping[Any, Mapping[str, float]], text: Callable[[float], str]
) -> list[str]:
    columns = list(next(iter(rows.values())))
    lines = ["", f"| {title} | {' | '.join(columns)} |", "| --- " * (1 + len(columns)) + "|"]
    for name, seconds in rows.items():
        lines.append(f"| {name} | {' | '.join(map(text, seconds.values()))} |")
    return lines


def _kernels(name: str, kernels: list[dict[str, Any]]) -> list[str]:
    title = f"slowest kernels of {name}, of {sum(k['launches'] for k in kernels):.0f} launches"
    lines = ["", f"| {title} | launches a call | ms | share |", "| --- " * 4 + "|"]
    for k in kernels[:MOST_KERNELS]:
        cells = f"{k['launches']:.0f} | {k['ms']:.3f} | {k['share']:.1%}"
        lines.append(f"| `{k['name'][:90]}` | {cells} |")
    return lines


def _notes(r: dict[str, Any]) -> str:
    precise = "float64" if r["dtype"] == "float32" else "float32"
    how = "all rows were timed in turn"
    if not r["together"]:
        how = (
            "the copies did not fit into memory together, so groups took turns and only rows of "
            "one group were timed call by call in turn"
        )
    return (
        f"Each of {r['weight_copies']} groups of rows has its own copy of the weights; {how}. "
        f"Speed-up: over the first row. Peak: one copy of the weights "
        f"({r['weight_bytes'] / GIB:.2f} GiB) and the most that calls took besides, CUDA graphs "
        "included; a copy that a runtime makes for itself (OpenVINO) is not. Error: relative, of "
        f"one call, against {precise}."
    )
