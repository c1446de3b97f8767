"""The results of a run as Markdown, for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..bench.table import GIB, table
from .jobs import Job


def text(data: dict[str, Any], jobs: Iterable[Job]) -> str:
    """Return what is known, most valuable first, from the content of a `Record`."""
    identity = data["identity"]
    lines = [
        f"# {identity['device_name']}, torch {identity['torch']}"
        f"{', a dry run with tiny models' if identity['dry_run'] else ''}",
        *(f"- {note}" for note in data["notes"]),
        "",
        "| what | state | seconds | |",
        "| --- " * 4 + "|",
    ]
    known = [(job, data["jobs"][job.name]) for job in jobs if job.name in data["jobs"]]
    for job, entry in known:
        seconds = f"{entry.get('seconds', 0):.0f}"
        lines.append(f"| {job.name} | {entry['state']} | {seconds} | {_cell(entry['why'])} |")
    for job, entry in known:
        if result := entry.get("result"):
            lines += ["", f"## {job.name}", "", *_KINDS[job.kind](result)]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:300]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _ladder(result: dict[str, Any]) -> list[str]:
    if not result.get("complete"):
        rows = [(row["name"], _ms(row["one_call_s"]), row["note"]) for row in result["rows"]]
        return ["It did not come to an end: each row was timed once.", "", *_table(_ONCE, rows)]
    lines = [table(result), ""]
    if launches := result.get("launches"):
        lines += _table(_LAUNCHES, (_launches(row) for row in launches))
    return lines


_ONCE = ("row", "ms of one call", "")
_LAUNCHES = ("row", "launches", "by class", "of the model, never run", "by class")


def _launches(row: dict[str, Any]) -> tuple[str, ...]:
    def classes(of: dict[str, float] | None) -> str:
        return ", ".join(f"{name} {n:.0f}" for name, n in (of or {}).items()) or "-"

    model = row["model"] or {}
    source = "" if model.get("of_this_source", True) else ", of other source code"
    return (
        row["row"],
        f"{row['launches']:.0f}" if row["launches"] else "the profiler saw none",
        classes(row["classes"]),
        f"{model['launches']:.0f} ({model['arch']}{source})" if model else "-",
        classes(model.get("classes")),
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f}"


def _code(result: dict[str, Any]) -> list[str]:
    lines = [result["carried"], ""] if result.get("carried") else []
    rows = []
    for unit in result.get("units", ()):
        errors = [f"{max(unit[name]):.2e}" if unit.get(name) else "-" for name in _ERRORS]
        rows.append((unit["unit"], unit["origin"], *errors, _cell(unit.get("problem", ""))))
    return [*lines, *_table(("unit", "origin", "error", "torch's own error", ""), rows)]


_ERRORS = ("compiled", "eager")


def _loras(result: dict[str, Any]) -> list[str]:
    changes = result.get("changes", {})
    kinds = [*next(iter(changes.values()), {})]
    rows = [(place, *(f"{1000 * s[kind]:.1f}" for kind in kinds)) for place, s in changes.items()]
    lines = _table(("ms to change, by where base weights are", *kinds), rows)
    calls = result.get("calls", {})
    return [*lines, "", *(f"A call with {n} merged: {_ms(s)} ms." for n, s in calls.items())]


def _first(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, value in result.items():
        if name.endswith("_s") and value is not None:
            rows.append((name.removesuffix("_s").replace("_", " "), f"{value:.3f} s"))
        elif "bytes" in name and value is not None:
            rows.append((name.replace("_", " "), f"{value / GIB:.2f} GiB"))
    return _table(("", result.get("way", "")), rows)


def _tests(result: dict[str, Any]) -> list[str]:
    tests = result.get("tests", ())
    by = {o: [t for t in tests if t["outcome"] == o] for o in ("passed", "failed", "skipped")}
    lines = [", ".join(f"{len(found)} {outcome}" for outcome, found in by.items()) + "."]
    return [*lines, *(f"- {t['test']}: {_cell(t['why'])}" for t in by["failed"])]


def _kernels(result: dict[str, Any]) -> list[str]:
    made = "{arch}: {code_bytes} bytes, compiled by NVRTC {nvrtc} in {compile_s:.2f} s"
    return [made.format(**result) if "arch" in result else "", "", *_code(result)]


_KINDS = {
    "ladder": _ladder,
    "code": _code,
    "kernels": _kernels,
    "loras": _loras,
    "first": _first,
    "tests": _tests,
}
