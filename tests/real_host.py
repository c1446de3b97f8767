"""What the tests in a real WebUI and in a real Forge share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest


def skip_below(folder: Path, items: Iterable[pytest.Item], reason: str) -> None:
    """Skip the tests in a folder, because there is no host to run them in."""
    skip = pytest.mark.skip(reason=reason)
    for item in items:
        if folder in item.path.parents:
            item.add_marker(skip)


def show(reporter: pytest.TerminalReporter, title: str, rows: Sequence[str]) -> None:
    """Show what was compared, where anything was, at the end of the run."""
    if rows:
        reporter.section(title)
        for row in rows:
            reporter.write_line(row)
