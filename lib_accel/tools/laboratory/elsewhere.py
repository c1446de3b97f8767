"""Compiling for machines that are not this one: what `prebuild --for` names.

For a card, AOTInductor runs in the laboratory: kernels compute nothing there, so the code comes
unchecked, and is checked where it is first loaded. Inductor can time nothing there and takes the
first of its choices: it is untuned. For a lower level of x86-64 all of it runs here, on the
instructions of that level.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ...compile.backends.aoti.worker_environment import HERE, Elsewhere
from ...compile.backends.aoti.worker_process import WORKER
from ...compile.backends.isolated_python import isolating_variables, python_command
from ...compile.machine import Machine, instruction_set, probe
from ...errors import AccelError
from ...store.manifest import UNTUNED
from . import environment

CPU = torch.device("cpu")
"""The device of what is compiled for elsewhere: nothing here may ask for the card."""

WINDOWS = "win32-amd64"
"""As `Machine.platform` has it."""

_LEVELS = {"x86-64-v2": "default", "x86-64-v3": "avx2", "x86-64-v4": "avx512"}
"""What tells torch (ATEN_CPU_CAPABILITY) to compute with the instructions of a level."""

_VERSION = re.compile(r"([0-9]+)\.([0-9]+)(?:\.([0-9]+))?(\+[a-z0-9]+)?")


@dataclass(frozen=True)
class Place:
    """A machine that code is compiled for, and how that is done here."""

    machine: Machine
    elsewhere: Elsewhere = HERE


def processor(level: str) -> Place:
    """Return how code for processors of this level is made. Raises AccelError for a higher one."""
    here = instruction_set()
    if level > here:  # levels are in the order of their names
        raise AccelError(
            f"--for cpu:{level}: this processor has {here} and could not check the code. Expected "
            "a level up to that. Build on a machine that has it."
        )
    variables = {"ATEN_CPU_CAPABILITY": _LEVELS[level]}
    return Place(replace(probe(CPU), capability=level), Elsewhere(variables=variables))


def card(number: int, version: str | None) -> Place:
    """Return how AOTInductor compiles for cards of compute capability `number` / 10.

    In the torch `version`, as 2.10 or 2.10.0+cu128, by default in this Python's own, if that has
    CUDA. Raises AccelError, subprocess.CalledProcessError where there is no laboratory.
    """
    wanted, exact = _torch(version) if version else (None, "")
    if wanted is None and torch.version.cuda is None:
        wanted = environment.TORCH
    python, variables = environment.prepare(number, wanted)
    module = [str(python), "-m", __name__]
    told = subprocess.run(
        module, cwd=environment.ROOT, env=variables, check=True, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(told.stdout.splitlines()[-1])
    machine = Machine(**{**found["machine"], "device_name": capability_name(number)})
    if exact and machine.torch != exact:
        raise AccelError(
            f"--torch {version}: the laboratory has {machine.torch}, as PyPI has it. Expected the "
            "same. Call a Python with that torch, without --torch."
        )
    changed = {name: v for name, v in variables.items() if os.environ.get(name) != v}
    libraries = [os.environ.get("LIBRARY_PATH"), variables["TRITON_LIBCUDA_PATH"]]
    changed["LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    origin = f"built without a card, for {capability_name(number)}{UNTUNED}"
    made = Elsewhere(found["command"], changed | found["variables"], "cuda:0", False, origin)
    return Place(machine, made)


def any_system(number: int, version: str | None, windows: bool) -> Place:
    """Return what the fused kernels are compiled for, which need no torch of the machine's own."""
    name, here = version or torch.__version__, probe(CPU)
    if "+" not in name:
        raise AccelError(
            f"the kernels are for one build of torch, and {name} does not say which. Expected "
            "--torch with what torch.__version__ says there, as 2.10.0+cu128."
        )
    machine = replace(
        here,
        torch=_torch(name)[1],
        device_type="cuda",
        device_name=capability_name(number),
        capability=capability(number),
        platform=WINDOWS if windows else here.platform,
    )
    origin = f"built without a card, for {capability_name(number)}"
    return Place(machine, Elsewhere(checks=False, origin=origin))


def capability(number: int) -> str:
    """Return 8.6 for 86."""
    return f"{number // 10}.{number % 10}"


def capability_name(number: int) -> str:
    """Return what stands for the name of a card that is not there."""
    return f"compute capability {capability(number)}"


def _torch(version: str) -> tuple[str, str]:
    """Return the version as PyPI has it, and as torch has it, or "" where that is not said."""
    found = _VERSION.fullmatch(version)
    if found is None:
        raise AccelError(f"--torch {version}: expected a version such as 2.10 or 2.10.0+cu128")
    major, minor, patch, build = found.groups()
    plain = f"{major}.{minor}.{patch or 0}"
    return plain, f"{plain}{build}" if build else ""


def _tell() -> dict[str, Any]:
    return {
        "machine": asdict(probe(torch.device("cuda:0"))),
        "command": python_command(WORKER),
        "variables": isolating_variables(),
    }


if __name__ == "__main__":  # in the laboratory
    json.dump(_tell(), sys.stdout)
