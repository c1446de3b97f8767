"""What the tests of the compiling side share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_earlier_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the times of earlier runs, which order the units of a job, from nobody's profile."""
    monkeypatch.setattr(
        "lib_accel.compile.backends.times.own_times_file", lambda: tmp_path / "times"
    )
