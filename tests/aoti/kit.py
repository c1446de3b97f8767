"""What the tests of the backend aoti share; fixtures are in conftest.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from lib_accel.compile.backends.aoti.backend import Aoti
from lib_accel.compile.backends.aoti.job import CompileJob
from lib_accel.compile.units import units_of
from lib_accel.model.specs import Spec
from lib_accel.store import ArtifactStore

from .. import tiny
from .processes import compilers, until, using

OUTPUT = units_of(tiny.TINY)[-1]
"""The unit that compiles fastest."""

posix = pytest.mark.skipif(os.name != "posix", reason="signals, mounts and shell scripts")


def started(store: ArtifactStore, units: Iterable[Spec] = (OUTPUT,)) -> CompileJob:
    """Start a job that compiles `units` into the store."""
    job = Aoti().make(tiny.target(units), store)
    assert isinstance(job, CompileJob)
    return job


def stand_in(folder: Path, script: str) -> str:
    """Write a shell script to use as the C++ compiler; return its path."""
    path = folder / "g++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def assert_nothing_left(temp: Path) -> None:
    """Assert that a job's processes and temporary files go within seconds, but not `PLANTED`."""
    until("its processes to end", lambda: not using(temp), 10)
    planted = {temp / Path(f"{name}.py").parts[0] for name in PLANTED}
    until("its files to go", lambda: set(temp.iterdir()) <= planted, 10)


def await_compiler(temp: Path) -> None:
    """Wait until the C++ compiler is at work."""
    until("the C++ compiler to be at work", lambda: compilers(temp))


PLANTED = ("psutil", "shutil", "signal", "json", "runpy", "torch", "filelock", "numpy")
PLANTED += ("sitecustomize", "usercustomize", "lib_accel/__init__", "encodings/__init__")


def plant(shared: Path) -> Path:
    """Put the modules PLANTED into a shared folder; return the file that they write to."""
    marker = shared.parent / "planted-code-ran"
    for name in PLANTED:
        file = shared / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        # `encodings` is imported before there is `open`
        to = f"posix.open({str(marker)!r}, posix.O_CREAT | posix.O_APPEND | posix.O_WRONLY)"
        file.write_text(f"import posix; posix.write({to}, b'{name}; ')\n")
    shared.chmod(0o1777)
    return marker


JOB = """
import json, sys
from pathlib import Path
from lib_accel.compile.backends.aoti.backend import Aoti
from lib_accel.compile.jobs import Job
from lib_accel.compile.units import units_of
from lib_accel.model.specs import Spec
from lib_accel.store import ArtifactStore
from tests import tiny

if __name__ == "__main__":
    units = units_of(tiny.TINY)[int(sys.argv[2]) :][::-1]  # the fastest first
    job = Aoti().make(tiny.target(units), ArtifactStore(Path(sys.argv[1])))
    stage = None
    while isinstance(job, Job) and not job.wait(0.02):
        if (new := job.progress().stage) != stage:
            print(stage := new, flush=True)
    code, compiled = (job.result(), job.compiled) if isinstance(job, Job) else (job, 0)
    print(json.dumps({"compiled": compiled, "units": len(code)}))
"""


def start_process(
    root: Path, store: ArtifactStore, temp: Path, first: int = -1, before: str = ""
) -> subprocess.Popen[str]:
    """Compile TINY's units from number `first` on in another process.

    It runs the code `before`, prints each stage of the job on a line, and one line of JSON.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temp)),
    }
    command = [sys.executable, "-c", before + JOB, str(store.root), str(first)]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
