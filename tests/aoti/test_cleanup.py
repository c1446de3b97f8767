"""Deleting the files of compilers that were killed."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from lib_accel.compile.backends.process_tree import remove


def test_files_that_are_still_being_written_go_as_well(tmp_path: Path):
    """A compiler may write for a moment after it was killed."""
    folder, end = tmp_path / "files", time.monotonic() + 1
    (folder / "cache").mkdir(parents=True)

    def write() -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                (folder / "cache").mkdir(exist_ok=True)
                for number in range(100):
                    (folder / "cache" / str(number)).touch()

    writer = threading.Thread(target=write)
    writer.start()
    (folder / "cache" / "0").touch()
    remove(folder)
    writer.join()
    assert not folder.exists()
