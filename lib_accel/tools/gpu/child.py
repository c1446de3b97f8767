"""The process of one job: `python -m lib_accel.tools.gpu.child`, started by process.py.

Reads {"job": {...}, "setting": {...}} from standard input and writes one line of JSON at a time:
{"say": words}, {"at": what it is at, should it crash there}, {"result": all that is known by now},
and at the end {"done": true} or {"error": words}.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from ...errors import AccelError
from .jobs import Job
from .record import finite


class Teller:
    """Tells the parent how a job goes. `result` is what is known by now."""

    def __init__(self, fd: int):
        self._out = os.fdopen(fd, "w", encoding="utf-8")
        self.result: dict[str, Any] = {}

    def __call__(self, **message: Any) -> None:
        """Write one line. Raises OSError where the parent is gone."""
        self._out.write(json.dumps(finite(message)) + "\n")
        self._out.flush()

    def say(self, text: str) -> None:
        """Tell a person what happens."""
        self(say=text)

    def at(self, what: str) -> None:
        """Tell what would be at fault if the process crashed now."""
        self(at=what)

    def know(self, **more: Any) -> None:
        """Add to the result, and pass it on."""
        self.result |= more
        self(result=self.result)


def main() -> None:
    """Do one job."""
    tell = Teller(os.dup(1))
    os.dup2(2, 1)  # whatever a library prints must not mix with the lines
    given = json.loads(sys.stdin.readline())
    job = Job(**{**given["job"], **{n: tuple(given["job"][n]) for n in ("variants", "profile")}})
    try:
        import torch  # may be what fails

        from ..laboratory import stand_ins
        from . import measure
        from .setting import Setting

        setting = Setting.from_dict(given["setting"])
        kept = stand_ins.convolutions() if setting.pretended else None
        with torch.no_grad():
            measure.KINDS[job.kind](job, setting, tell)
        del kept
        tell(done=True)
    except (AccelError, RuntimeError, OSError, ImportError, ValueError) as e:
        traceback.print_exc()
        tell(error=f"{type(e).__name__}: {str(e).strip()[:2000]}")


if __name__ == "__main__":
    main()
