"""End a process that compiles together with all it started, and delete its files.

Run with PID and FOLDER, this module does so from outside, for a child whose parent is gone: that
cannot stop its own compiling thread, which would go on writing into FOLDER.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from .isolated_python import PACKAGE_ROOT, python_command


def end(pid: int) -> None:
    """End a process and everything it started.

    On POSIX it must lead a process group of its own. On Windows this process may be one of those
    that it started, behind the launcher that a virtual environment's python.exe is.
    """
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process, spared = psutil.Process(pid), {os.getpid(), os.getppid()} - {pid}
        for each in [process, *process.children(recursive=True)]:
            if each.pid not in spared:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


def remove(folder: Path, patience_s: float = 5.0) -> None:
    """Delete a folder that compilers were using; try again for `patience_s`.

    A process that was just killed may write for a moment, or hold its files (Windows).
    """
    give_up = time.monotonic() + patience_s
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > give_up:
            return
        time.sleep(0.1)


def end_this(folder: Path) -> None:
    """End this process and all it started, and delete `folder`: its parent cannot any more.

    A thread calls it: the others go on computing until the end.
    """
    # where no further process can be started, the files stay, but this process ends all the same
    with contextlib.suppress(OSError):
        subprocess.Popen(
            python_command("lib_accel.compile.backends.process_tree", os.getpid(), folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=PACKAGE_ROOT,  # not in `folder`: Windows deletes no folder that is a current one
            start_new_session=True,  # it ends the group that the parent has put this process in
        ).wait()
    os._exit(1)  # reached only where that could not end this process


if __name__ == "__main__":
    end(int(sys.argv[1]))
    remove(Path(sys.argv[2]))
