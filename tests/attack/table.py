"""All attacks, and the table of a full run. An attack is one entry of some module's `ATTACKS`."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import SkipTest

Attack = Callable[[Path, int, int], int]
"""Takes an empty folder, how often to try, and a seed; returns how often it tried.

Raises an exception at what should not happen, and SkipTest where it cannot be tried here.
"""

Entry = tuple[Attack, int, int]
"""The attack, how often the tests try it (0: not at all), and how often a full run does."""

MODULES = (
    "tests.attack.checkpoints",
    "tests.attack.loras",
    "tests.attack.commands",
    "tests.attack.routes",
    "tests.store.attacks",
)
_PROFILES = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "APPDATA", "LOCALAPPDATA")
MOST_SECONDS = 1800  # that one attack may take


def entries(module: str) -> dict[str, Entry]:
    """Return the attacks of a module, by name."""
    return importlib.import_module(module).ATTACKS


@contextlib.contextmanager
def away_from_home(folder: Path) -> Iterator[Path]:
    """Let `~` and relative paths lead below `folder`; yield an empty folder for an attack.

    What is attacked may write there: it must not be the user's own home or this repository.
    """
    places = {name: folder / name for name in ("home", "work", "attack")}
    for place in places.values():
        place.mkdir()
    real = str(Path("~/.cache/huggingface").expanduser())  # a real WebUI needs what lies there
    moved = {"HF_HOME": os.environ.get("HF_HOME", real)}
    moved |= dict.fromkeys(("HOME", "USERPROFILE"), str(places["home"]))
    moved |= {name: str(places["home"] / name) for name in _PROFILES}
    before, working = dict(os.environ), Path.cwd()
    os.environ.update(moved)
    os.chdir(places["work"])
    try:
        yield places["attack"]
    finally:
        os.chdir(working)
        os.environ.clear()
        os.environ.update(before)


def main(names: list[str]) -> int:
    """Run all attacks, or those whose names hold one of `names`; return 1 if one fails, else 0."""
    print(f"{'attack':44} {'tried':>6} {'result':8} {'seconds':>8}", flush=True)
    results = []
    for name, entry in _wanted(names):
        if sys.__stderr__:
            faulthandler.dump_traceback_later(MOST_SECONDS, exit=True, file=sys.__stderr__)
        results.append(_run(name, entry))
    faulthandler.cancel_dump_traceback_later()
    return 0 if results and all(results) else 1


def _wanted(names: list[str]) -> Iterator[tuple[str, Entry]]:
    for module in MODULES:
        for name, entry in entries(module).items():
            if not names or any(n in name for n in names):
                yield name, entry


def _run(name: str, entry: Entry) -> bool:
    attack, _, count = entry
    tried, result, why = 0, "held", ""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, away_from_home(Path(folder)) as place:
        try:
            tried = attack(place, count, 1)
        except SkipTest as e:
            result, why = "NOT RUN", f": {e}"
        except Exception:  # noqa: BLE001  (whatever it is, the next attack is tried too)
            result, why = "FAILED", f"\n{traceback.format_exc()}"
    print(f"{name:44} {tried:6} {result:8} {time.monotonic() - began:8.1f}{why}", flush=True)
    return result != "FAILED"
