"""What works on this machine, what does not, and what to do about it: findings for the command line and the WebUI's tab."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import Config
from ..errors import AccelError
from ..model import presets
from ..store.store import ArtifactStore
from .eager import Eager
from .machine import Machine, probe
from .session import Session
from .target import Target
from .toolchain import cuda_advice, cxx_advice, triton_advice
from .units import units_of


@dataclass(frozen=True)
class Finding:
    """`level`: "ok", "note" (works, could be better) or "problem" (does not work)."""

    level: str
    what: str
    advice: str = ""


def examine(device: torch.device, dtype: torch.dtype, store: ArtifactStore) -> list[Finding]:
    """Every finding, in the order a person would fix them."""
    machine = probe(device)
    findings = [_python(), _torch(machine), _device(device, machine, dtype), _compiler(machine)]
    if machine.device_type == "cuda":
        findings += [_triton(machine), _headers(machine)]
    findings += [_store(store), _temporary()]
    target = Target(units_of(presets.sd1()), dtype, device, machine)
    return [f for f in findings if f] + _backends(target, store)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("ok", f"Python {version} on {sys.platform}")


def _torch(machine: Machine) -> Finding:
    if machine.packaging:
        return Finding("ok", f"torch {machine.torch} makes and loads AOTInductor packages")
    return Finding(
        "note",
        f"torch {machine.torch} has no AOTInductor packaging with dynamic shapes",
        "torch 2.6 or later (on Windows 2.9) keeps compiled code across starts",
    )


def _device(device: torch.device, machine: Machine, dtype: torch.dtype) -> Finding:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Finding(
            "ok",
            f"{machine.device_name}, capability {machine.capability}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, {dtype}",
        )
    return Finding(
        "ok", f"{machine.device_name}, {machine.capability or 'no vector units known'}, {dtype}"
    )


def _compiler(machine: Machine) -> Finding:
    if machine.cxx:
        return Finding("ok", f"C++ compiler: {machine.cxx}")
    return Finding(
        "note",
        "no C++ compiler was found",
        f"{cxx_advice()}, or import artifacts made on a machine like this",
    )


def _triton(machine: Machine) -> Finding:
    if machine.triton:
        return Finding("ok", f"Triton {machine.triton}")
    return Finding("note", "Triton is not installed", triton_advice())


def _headers(machine: Machine) -> Finding | None:
    """Triton compiles a launcher for each kernel against Python's; aoti's code needs CUDA's."""
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        how = (
            f"copy the folders include and libs of an installed Python {version} beside this Python"
            if sys.platform == "win32"
            else f"install them (Debian, Ubuntu: apt install python{version}-dev)"
        )
        return Finding(
            "note",
            f"the headers of Python {version} (Python.h) are missing, which Triton needs",
            how,
        )
    if machine.gpu_headers is None:
        return Finding(
            "note", "CUDA's headers were not found, which aoti needs to compile", cuda_advice()
        )
    return None


def _store(store: ArtifactStore) -> Finding:
    try:
        store.check()
        entries = store.list()
    except AccelError as e:
        return Finding("problem", "the artifact store cannot be used", str(e))
    damaged = [e for e in entries if e.problem]
    if damaged:
        return Finding(
            "note",
            f"{len(damaged)} damaged artifacts in {store.root}: {damaged[0].problem}",
            "they are made again when needed",
        )
    return Finding(
        "ok",
        f"store {store.root}: {len(entries)} artifacts, {sum(e.bytes for e in entries) / 1e6:.1f} MB of {store.max_bytes / 1e6:.0f} MB",
    )


def _temporary() -> Finding:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if free < 2**30:
        return Finding(
            "problem",
            f"only {free / 2**20:.0f} MiB are free in {folder}",
            "compiling needs about 1 GiB of temporary files",
        )
    return Finding("ok", f"{free / 2**30:.0f} GiB free for temporary files in {folder}")


def _backends(target: Target, store: ArtifactStore) -> list[Finding]:
    config = Config(store=store.root)
    choice = Session().choose(target, store, config)
    findings = [
        Finding("note", f"backend {name} does not work here", why) for name, why in choice.refused
    ]
    name = choice.backend.name if choice.backend else "none"
    if name in ("none", Eager.name) and target.machine.device_type != "cuda":
        findings.append(
            Finding(
                "problem",
                "nothing can be compiled here: images are made at the plain speed of torch",
                "see the notes above",
            )
        )
    else:
        graphs = target.machine.device_type == "cuda" and (
            name != "aoti" or target.machine.recordable
        )
        findings.append(
            Finding("ok", f"automatic choice: {name}" + (" with CUDA graphs" if graphs else ""))
        )
    return findings
