"""The child process that compiles: the module that worker_process.py runs with FOLDER.

FOLDER is made for the workers of one job. A worker reads tasks from standard input and answers on
standard output, one line of JSON each. When standard input ends, the parent is gone: then it lets
process_tree.py end its whole process group (the C++ compiler, Triton's workers) and delete FOLDER.

Task: {"unit": a spec as a dict, "dtype": "float32", "device": "cpu", "folder": "...", "threads": 1,
"stages": ["compile", "check"], "headers": whether to compile C++ headers first}. Stages are either
or both. What is only checked lies in the folder already.
Answer: {"stage": "compile" | "check"} while at work, then {"ok": true, "verdict": {...} or null,
"seconds": s, "options": "..."} with the unit's files in its folder and the compiler's options, or
{"error": "..."}.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from ..process_tree import end_this


def main(folder: Path) -> None:
    """Serve tasks until the parent is gone."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a compiler prints must not mix with the answers
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(tasks, folder), daemon=True).start()
    while True:
        task = json.loads(tasks.get())
        try:
            _do(task, answers)
        except Exception as e:  # noqa: BLE001  the boundary of this process: the parent decides
            with contextlib.suppress(OSError):  # the disk of the log may be full
                traceback.print_exc()
            _answer(answers, error=f"{type(e).__name__}: {str(e).strip()[:2000]}")


def _read(tasks: queue.SimpleQueue[str], folder: Path) -> None:
    for line in sys.stdin:
        tasks.put(line)
    end_this(folder)


def _do(task: dict[str, Any], answers: TextIO) -> None:
    """Compile one unit, or take the code that is there; check it, and answer."""
    import torch

    from ....model.specs import spec_from_dict
    from ...accuracy import check_unit
    from .load import load_unit

    start = time.monotonic()
    torch.set_num_threads(int(task["threads"]))
    unit, dtype = spec_from_dict(task["unit"]), getattr(torch, task["dtype"])
    device, folder = torch.device(task["device"]), Path(task["folder"])
    verdict, options = None, ""
    if "compile" in task["stages"]:
        from .compiler import compile_unit, options_for

        _answer(answers, stage="compile")
        code = compile_unit(unit, dtype, device, folder, task["headers"])
        options = " ".join(f"{name}={value}" for name, value in options_for(unit, device).items())
    else:
        code = load_unit(folder, device)
    if "check" in task["stages"]:
        _answer(answers, stage="check")
        verdict = check_unit(unit, code, dtype, device, alone=True).to_dict()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # images are made on the same card
    seconds = time.monotonic() - start
    _answer(answers, ok=True, verdict=verdict, seconds=seconds, options=options)


def _answer(answers: TextIO, **message: object) -> None:
    try:
        answers.write(json.dumps(message) + "\n")
        answers.flush()
    except OSError:
        # the parent is gone: the reading thread ends this process, which must not end before that
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
