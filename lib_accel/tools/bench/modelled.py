"""The bench without a GPU: launches and traffic counted on a pretend card, and modelled times.

A model, never run: a launch takes `max(bytes / bandwidth, operations / rate)` by the published
peaks of a named card (the roofline of Williams et al. 2009), and launching takes nothing. No card
reaches its peaks, so modelled times are floors. They compare ways to compute a call.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...compile.source_digest import PACKAGE, digest_of, source_digest, source_files
from ...errors import AccelError
from ...model import presets
from ..laboratory.backends import BACKENDS
from ..laboratory.environment import HOME, ROOT, prepare
from ..laboratory.launches import CLASSES, COMPUTING

MB = 1e6
DTYPES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Card:
    """A card by its published peaks: bytes a second, and operations a second.

    `rate` is that of dense matrix products of 16-bit numbers that are summed in float32.
    """

    name: str
    bandwidth: float
    rate: float

    def seconds(self, traffic: int, operations: int) -> float:
        """Return the least time of a launch, for bytes of traffic and operations."""
        return max(traffic / self.bandwidth, operations / self.rate)


CARDS = {
    75: Card("GeForce RTX 2080 Ti", 616e9, 53.8e12),
    80: Card("A100 40 GB", 1555e9, 312e12),
    86: Card("GeForce RTX 3090", 936e9, 71e12),
    89: Card("GeForce RTX 4090", 1008e9, 165.2e12),
    90: Card("H100 SXM", 3350e9, 989.4e12),
    120: Card("GeForce RTX 5090", 1792e9, 209.5e12),
}
"""The pretend cards (laboratory/driver/card.c) by compute capability times 10.

The peaks are those in NVIDIA's white papers of the architectures. How many multiprocessors a card
has decides launches too: torch's attention splits its work to fill them.
"""


@dataclass(frozen=True)
class Plan:
    """What to count: a family as --family names it, and the sizes of a call, `size` in pixels."""

    family: str
    capability: int
    size: int
    batch: int
    tokens: int
    dtype: str
    backends: tuple[str, ...] = tuple(BACKENDS)


def plan(args: argparse.Namespace) -> Plan:
    """Return what the arguments ask for. Raises ArgumentTypeError for what cannot be modelled."""
    dtype = args.dtype or DTYPES[0]
    if dtype not in DTYPES:
        raise argparse.ArgumentTypeError(f"--model --dtype {dtype}: expected {' or '.join(DTYPES)}")
    capability = _capability(args.device)
    if dtype == "bfloat16" and capability < 80:
        raise argparse.ArgumentTypeError("--dtype bfloat16: torch compiles it for sm_80 and later")
    backends = tuple(dict.fromkeys((args.variants or ",".join(BACKENDS)).split(",")))
    if unknown := [name for name in backends if name not in BACKENDS]:
        expected = ", ".join(BACKENDS)
        raise argparse.ArgumentTypeError(
            f"--model --variants {','.join(unknown)}: expected some of {expected}"
        )
    is_name = re.split("[:+]", args.family)[0] in presets.PRESETS
    family = args.family if is_name else str(Path(args.family).absolute())
    return Plan(family, capability, args.size, args.batch, args.tokens, dtype, backends)


def _capability(device: str | None) -> int:
    """Return the compute capability times 10 that `cuda:sm_86` names."""
    text = (device or "").removeprefix("cuda:sm_")
    if text != device and text.isdecimal() and int(text) in CARDS:
        return int(text)
    expected = ", ".join(f"cuda:sm_{each}" for each in CARDS)
    raise argparse.ArgumentTypeError(
        f"--model needs the architecture of a card, --device with one of {expected}"
    )


@functools.cache
def digests() -> dict[str, str]:
    """Return the digests that counts depend on: of compiled code, and of all that is counted.

    The files are read once.
    """
    return {"source": source_digest(), "counted_source": digest_of(PACKAGE, *_COUNTED)}


def counted_files() -> set[Path]:
    """Return the source files that counts depend on."""
    return source_files(PACKAGE, *_COUNTED)


_COUNTED = ("tools/laboratory/count.py",), ("compile", "model", "runtime", "tools")
"""What counts, and the folders of what it imports."""


def measure(plan: Plan) -> dict[str, Any]:
    """Count in the laboratory, from code that is generated now. Raises AccelError if that fails.

    The laboratory's own words go to standard error. Compiling SD1 to GPU code takes minutes.
    """
    task = asdict(plan)
    card, made_from = CARDS[task.pop("capability")], digests()
    counts = _counted(task, plan.capability)
    del task["backends"]
    return {
        "model": True,
        "note": "modelled from counts on a pretend card; nothing of this ran on a GPU",
        "date": datetime.date.today().isoformat(),
        "torch": counts["torch"],
        "triton": counts["triton"],
        "arch": f"sm_{plan.capability}",
        "card": asdict(card),
        **task,
        **made_from,
        "rows": [row(name, launches, card) for name, launches in counts["backends"].items()],
    }


def _counted(task: Mapping[str, Any], capability: int) -> dict[str, Any]:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it says what it makes
            python, variables = prepare(capability)
    except subprocess.CalledProcessError as e:
        raise AccelError(f"the laboratory cannot be made: {e}") from e
    with TemporaryDirectory() as folder:
        variables |= {
            "PRETEND_LOG": str(Path(folder, "driver.log")),
            "PYTHONWARNINGS": "ignore",  # torch's own, of its exporter
            # what has been compiled to GPU code before is compiled again only where it changed
            "TORCHINDUCTOR_CACHE_DIR": str(HOME / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
        command = [str(python), "-m", "lib_accel.tools.laboratory.count", json.dumps(task)]
        done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise AccelError(f"the laboratory failed with exit status {done.returncode}, see above")
    return json.loads(done.stdout.splitlines()[-1])


def row(backend: str, launches: Iterable[Sequence[Any]], card: Card) -> dict[str, Any]:
    """Return the sums of one backend from its launches: [name, class, bytes, operations] each."""
    classes = {name: {"launches": 0, "mb": 0.0, "modelled_ms": 0.0} for name in CLASSES}
    for _, kind, traffic, operations in launches:
        of = classes[kind]
        of["launches"] += 1
        of["mb"] += traffic / MB
        of["modelled_ms"] += 1000 * card.seconds(traffic, operations)
    used = {name: of for name, of in classes.items() if of["launches"]}
    return {
        "backend": backend,
        "launches": sum(int(of["launches"]) for of in used.values()),
        "memory_bound_mb": sum(of["mb"] for name, of in used.items() if name not in COMPUTING),
        "modelled_ms": sum(of["modelled_ms"] for of in used.values()),
        "classes": used,
    }


_CONDITIONS = ("family", "size", "batch", "tokens", "dtype")


def stored(file: Path, plan: Plan) -> dict[str, Any]:
    """Read the result of an earlier run of the same plan; it may have other rows.

    Raises AccelError where the source has changed since, or the file is of something else.
    """
    asked = {name: value for name, value in vars(plan).items() if name in _CONDITIONS}
    asked |= {"model": True, "arch": f"sm_{plan.capability}"}
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        found = {name: result[name] for name in asked}
        made_from = {name: result[name] for name in digests()}
    except (ValueError, KeyError, TypeError) as e:
        raise AccelError(f"{file}: expected the JSON that bench --model has written") from e
    again = "Count again: run the same command without --stored"
    if made_from != digests():
        raise AccelError(f"{file} was counted from other source code than today's. {again}")
    if differs := [name for name in asked if found[name] != asked[name]]:
        got = ", ".join(f"{name} {found[name]}" for name in differs)
        raise AccelError(f"{file} was counted for {got}. {again}")
    return result


def table(r: Mapping[str, Any]) -> str:
    """Return the result as Markdown: a table of all, and one by class for each backend."""
    card = r["card"]
    lines = [
        f"**Modelled, never run.** {r['family']}, {r['size']}x{r['size']}, batch {r['batch']}, "
        f"{r['tokens']} tokens, {r['dtype']}, {r['arch']}; code generated by torch {r['torch']} "
        f"and triton {r['triton']}, {r['date']}, source {r['source'][:12]}.",
        f"A launch takes max(bytes / {card['bandwidth'] / 1e9:.0f} GB/s, operations / "
        f"{card['rate'] / 1e12:.1f} TFLOP/s), the peaks of a {card['name']}; launching takes "
        "nothing. Of tensorrt, whose launches cannot be counted, it is a floor: convolutions, "
        "products and attention alone.",
        "",
        "| backend (modelled) | launches | memory-bound MB | modelled ms |",
        "| --- " * 4 + "|",
    ]
    for row in r["rows"]:
        cells = f"{row['launches']} | {row['memory_bound_mb']:.0f} | {row['modelled_ms']:.2f}"
        lines.append(f"| {row['backend']} | {cells} |")
    names = [row["backend"] for row in r["rows"]]
    lines += ["", f"| class (modelled): launches, MB, ms | {' | '.join(names)} |"]
    lines.append("| --- " * (1 + len(names)) + "|")
    for kind in CLASSES:
        found = [row["classes"].get(kind) for row in r["rows"]]
        if any(found):
            lines.append(f"| {kind} | {' | '.join(map(_cell, found))} |")
    return "\n".join(lines)


def _cell(of: Mapping[str, float] | None) -> str:
    return f"{of['launches']}, {of['mb']:.0f}, {of['modelled_ms']:.2f}" if of else "-"
