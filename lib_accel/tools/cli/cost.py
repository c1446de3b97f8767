"""`cost`: measure what the extension costs in a WebUI besides computing."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...errors import AccelError
from ..terminal import say, show
from ..webui.cost import Plan, as_text, measure
from ..webui.process import CPU_FLAGS, python_of
from .common import located


def run(args: argparse.Namespace) -> int:
    """Measure and print the result."""
    webui = located(args.webui)
    if not (webui / "launch.py").exists():
        what = "holds no launch.py" if webui.exists() else "does not exist"
        raise AccelError(f"{webui} {what}. Expected the folder of a WebUI. Check the name")
    python = located(args.python, follow=False) if args.python else python_of(webui)
    if not python.exists():
        raise AccelError(f"{python} does not exist. Expected the WebUI's Python. Check the name")
    plan = Plan(
        webui,
        python,
        _checkpoint(webui, args.checkpoint),
        Path(__file__).resolve().parents[3],
        located(args.store),
        [*(CPU_FLAGS if args.cpu else ()), *args.flags],
        args.pictures,
    )
    result = measure(plan, say)
    show(result, args, as_text(result))
    return 0


def _checkpoint(webui: Path, wanted: Path) -> Path:
    folder = webui / "models" / "Stable-diffusion"
    found = next((p for p in map(located, (wanted, folder / wanted)) if p.is_file()), None)
    if found is None:
        raise AccelError(f"{wanted} does not exist, here or in {folder}. Check the name")
    return found
