"""The child process that compiles: `python -m lib_accel.compile.aoti.worker FOLDER`, where FOLDER is made for it and its like.

It reads one task a line (JSON) from standard input and answers on standard output, one line each. When standard input ends
the parent is gone: the process has its whole group (the C++ compiler, Triton's workers) and the folder taken away (`ending`).

Task: {"unit": layer dict, "dtype": "float32", "device": "cpu", "path": "...pt2", "threads": 1}
Answer: {"stage": "compile" | "check"} while at work, then {"ok": true, "verdict": {...}, "seconds": s} or {"error": "..."}.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO


def main(folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a compiler prints must not mix with the answers
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(tasks, folder), daemon=True).start()
    while True:
        task = json.loads(tasks.get())
        try:
            _do(task, answers)
        except Exception as e:  # noqa: BLE001  the boundary of this process: the parent names the unit and decides
            with contextlib.suppress(OSError):  # the disk of the log may be full
                traceback.print_exc()
            _say(answers, error=f"{type(e).__name__}: {str(e).strip()[:2000]}")


def _read(tasks: queue.SimpleQueue[str], folder: Path) -> None:
    for line in sys.stdin:
        tasks.put(line)
    _end(folder)


def _end(folder: Path) -> None:
    """Have this process, all it started and their files taken away: the parent cannot do it any more."""
    with contextlib.suppress(
        OSError
    ):  # no room for one more process: the files stay, this one does not
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "lib_accel.compile.aoti.process_tree",
                str(os.getpid()),
                str(folder),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # `-m` puts the current folder first on Python's path, so it must never be the shared temporary one;
            # nor may it be FOLDER, because Windows does not remove a folder that is somebody's current one
            cwd=Path(__file__).resolve().parents[3],
            start_new_session=True,  # it ends the group that the parent has put us in
        ).wait()
    os._exit(1)  # here only where that could not do it


def _do(task: dict[str, Any], answers: TextIO) -> None:
    import torch

    from ...model.specs import spec_from_dict
    from ..verify import check_unit
    from .unit import compile_unit, load_unit

    start = time.monotonic()
    torch.set_num_threads(int(task["threads"]))
    layer, dtype, device = (
        spec_from_dict(task["unit"]),
        getattr(torch, task["dtype"]),
        torch.device(task["device"]),
    )
    path = Path(task["path"])
    _say(answers, stage="compile")
    compile_unit(layer, dtype, device, path)
    _say(answers, stage="check")
    verdict = check_unit(layer, load_unit(path, device), dtype, device, alone=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # images are made on the same card
    _say(answers, ok=True, verdict=verdict.to_dict(), seconds=time.monotonic() - start)


def _say(answers: TextIO, **message: object) -> None:
    try:
        answers.write(json.dumps(message) + "\n")
        answers.flush()
    except (
        OSError
    ):  # the parent is gone: the reading thread ends this process, and it must not end before that
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
