"""`bench webui`: measure what the extension brings in a running WebUI."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..terminal import say, show
from ..webui import speed
from ..webui.client import Client
from ..webui.speed_table import passed, picture, table
from .common import write_files


def run(args: argparse.Namespace) -> int:
    """Measure, write table, picture and JSON, and print the table."""
    args.out.mkdir(parents=True, exist_ok=True)  # before minutes of work
    plan = speed.Plan(args.steps, args.size, args.lora, args.rounds, sampler=args.sampler)
    client = Client(args.url, args.auth)
    client.connect()
    say(f"{plan.images} images in the WebUI at {client.url}, off and on in turn")
    with tqdm(total=plan.images, desc="images", file=sys.stderr, disable=None) as bar:
        result = speed.measure(client, plan, say, bar.update)
    _write(result, args.out)
    show(result, args, table(result))
    return 0 if passed(result) else 1


def _write(result: dict[str, Any], folder: Path) -> None:
    keys = ("date", "architecture", "size", "steps", "dtype")
    texts = {"json": json.dumps(result, indent=1), "md": table(result), "svg": picture(result)}
    write_files(folder, ["webui", *(result[key] for key in keys)], texts)
