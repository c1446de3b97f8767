"""Count one UNet call on the pretend card: the process that bench/modelled.py starts.

Its argument is a task as JSON: {"family": "sd1", "size": 512, "batch": 2, "tokens": 77,
"dtype": "float16", "backends": ["aoti", "eager"]}. It prints one line of JSON: {"torch": "...",
"triton": "...", "backends": {"aoti": [[name, class, bytes, operations], ...], ...}}.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

from ..bench.ladder import make_inputs
from ..cli.common import family
from .backends import BACKENDS, CARD, Plan
from .launches import Counter, Launch

CALLS = 3
"""The last one is counted: what is computed once for an image falls out of it."""


def main(task: dict[str, Any]) -> None:
    """Count for every backend of the task, and print the launches."""
    plan = Plan(family(task["family"]), getattr(torch, task["dtype"]))
    found = {}
    for backend in task["backends"]:
        print(f"counting {backend} ...", file=sys.stderr, flush=True)
        found[backend] = [astuple(launch) for launch in _launches(backend, plan, task)]
    versions = {"torch": torch.__version__, "triton": importlib.metadata.version("triton")}
    print(json.dumps({**versions, "backends": found}))


@torch.no_grad()
def _launches(backend: str, plan: Plan, task: dict[str, Any]) -> list[Launch]:
    """Return the launches of a later call of an image. The prompt is a new tensor at every call."""
    counter = Counter(Path(os.environ["PRETEND_LOG"]))
    call = BACKENDS[backend](plan, counter)
    sizes = task["batch"], task["size"], task["tokens"]
    for _ in range(CALLS):
        inputs = make_inputs(plan.architecture, *sizes, CARD, plan.dtype)
        counter.launches.clear()
        with counter:
            call(*inputs)
    return counter.launches


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
