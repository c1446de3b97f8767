"""Start the process of one job, hear what it tells, and end it when its time is over."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...compile.backends.process_tree import end
from ..terminal import say
from .jobs import Job
from .setting import Setting

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Outcome:
    """How a job ended: `state` is "done", "failed" or "ended"; `at` is what a crash is laid to."""

    state: str
    why: str = ""
    at: str = ""


def run(job: Job, setting: Setting, log: Path, keep: Callable[[dict[str, Any]], object]) -> Outcome:
    """Run a job in a child process for at most `setting.seconds`. `keep` receives its result.

    What the process prints besides goes to the file `log`.
    """
    give_up = time.monotonic() + setting.seconds
    lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    start = log.stat().st_size if log.exists() else 0
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "lib_accel.tools.gpu.measure"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        assert process.stdin is not None
        task = {"job": asdict(job), "setting": setting.to_dict()}
        with contextlib.suppress(OSError):  # it has ended already: `_hear` finds that
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        outcome = _hear(lines, give_up, keep)
    finally:
        if process.poll() is None:
            end(process.pid)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent bytes for a process that has ended
                    pipe.close()
    if outcome.state == "failed" and not outcome.why:
        outcome.why = _crash(process.returncode, outcome.at, log, start)
    return outcome


def _read(process: subprocess.Popen[bytes], lines: queue.SimpleQueue[Any]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        try:
            lines.put(json.loads(line))
        except ValueError:  # half a line of a process that was killed
            break
    lines.put(None)


def _hear(
    lines: queue.SimpleQueue[Any], give_up: float, keep: Callable[[dict[str, Any]], object]
) -> Outcome:
    at = ""
    while True:
        try:
            message = lines.get(timeout=max(0.0, give_up - time.monotonic()))
        except queue.Empty:
            return Outcome("ended", f"its time was over{f' at {at}' if at else ''}", at)
        if message is None:
            return Outcome("failed", at=at)
        if "say" in message:
            say(f"  {message['say']}")
        at = message.get("at", at)
        if "result" in message:
            keep(message["result"])
        if message.get("done"):
            return Outcome("done")
        if "error" in message:
            return Outcome("failed", f"{message['error']}{f' at {at}' if at else ''}", at)


def _crash(status: int, at: str, log: Path, start: int) -> str:
    """Return how a process ended that said nothing about it, with the last that it printed."""
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    with log.open("rb") as stream:
        stream.seek(start)
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return f"its process ended ({how}){f' at {at}' if at else ''}: {' | '.join(lines[-4:])[:1000]}"
