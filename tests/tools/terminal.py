"""A command in a real terminal: what it prints, what is typed, and which processes it leaves."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

LIMIT_S = 120.0


class Terminal:
    """`python3 PATH/lib_accel ARGUMENTS` in a terminal of its own. Needs a POSIX system."""

    def __init__(self, root: Path, *arguments: object, folder: Path, **environment: str):
        pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
        self._mark, self.text = uuid.uuid4().hex, ""
        command = [sys.executable, str(root / "lib_accel"), *map(str, arguments)]
        marked = {**os.environ, **environment, "ACCEL_TEST_MARK": self._mark}
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            import fcntl
            import termios

            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
            os.chdir(folder)
            os.execve(command[0], command, marked)

    def wait_for(self, words: str) -> None:
        """Read until the command has printed these words."""
        end = time.monotonic() + LIMIT_S
        while words not in self.text:
            assert time.monotonic() < end, self.text
            assert self._read(), self.text

    def type(self, keys: str) -> None:
        """Press keys; "\\x03" is Ctrl-C."""
        os.write(self._terminal, keys.encode())

    def end(self) -> int:
        """Read until the command ends; return its exit status."""
        while self._read():
            pass
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def left(self) -> list[str]:
        """Return the processes that the command has left behind, after two seconds at most."""
        end = time.monotonic() + 2
        while found := [p for p in psutil.process_iter() if self._is_ours(p)]:
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        return [str(p) for p in found]

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            running = process.status() != psutil.STATUS_ZOMBIE
            return running and process.environ().get("ACCEL_TEST_MARK") == self._mark
        return False

    def _read(self) -> bool:
        """Read what there is; return False when the command has ended."""
        ready = select.select([self._terminal], [], [], LIMIT_S)[0]
        assert ready, f"nothing happens any more: {self.text}"
        with contextlib.suppress(OSError):  # so Linux says that the other end is closed
            read = os.read(self._terminal, 65536)
            self.text += read.decode(errors="replace")
            return bool(read)
        return False
