"""The doctor: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..config import MIB, Config
from ..errors import AccelError
from ..model import presets
from ..store.store import ArtifactStore
from .machine import Machine, probe
from .session import Eager, Session
from .target import Target
from .toolchain import missing_tools
from .units import units_of


@dataclass(frozen=True)
class Finding:
    """One line for a user, and what to do about it."""

    level: str  # "ok", "note" (it works, but could be better) or "problem" (it does not work)
    what: str
    advice: str = ""


def examine(
    device: torch.device,
    dtype: torch.dtype,
    store: ArtifactStore,
    machine: Machine | None = None,
) -> list[Finding]:
    """Return what is found about computing SD1 on `device` in `dtype`, in the order to mend it.

    `machine` is the machine to judge; by default, this one. Nothing is changed or written.
    """
    machine = machine or probe(device)
    target = Target(units_of(presets.sd1()), dtype, device, machine)
    kept = _store(store)
    return [
        _python(),
        _torch(machine),
        _device(device, machine, dtype),
        *_tools(machine),
        kept,
        _temporary(),
        *(_once(each, kept) for each in _backends(target, store)),
    ]


def _once(finding: Finding, before: Finding) -> Finding:
    """Return a finding that does not repeat at length what the one before has said."""
    if finding.advice and finding.advice == before.advice:
        return replace(finding, advice=f"because {before.what}")
    return finding


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("ok", f"Python {version} on {sys.platform}")


def _torch(machine: Machine) -> Finding:
    if machine.packaging:
        return Finding("ok", f"torch {machine.torch} makes and loads AOTInductor packages")
    what = f"torch {machine.torch} has no AOTInductor packaging with dynamic shapes"
    advice = "torch 2.6 or later (on Windows 2.9) keeps compiled code across starts"
    return Finding("note", what, advice)


def _device(device: torch.device, machine: Machine, dtype: torch.dtype) -> Finding:
    name, capability = machine.device_name, machine.capability
    precision = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        free, total = (f"{count / 2**30:.1f}" for count in torch.cuda.mem_get_info(device))
        memory = f"{name}, capability {capability}, {free} of {total} GiB free, {precision}"
        return Finding("ok", memory)
    return Finding("ok", f"{name}, {capability or 'no vector units known'}, {precision}")


def _tools(machine: Machine) -> list[Finding]:
    findings = []
    if machine.cxx:
        findings.append(Finding("ok", f"C++ compiler: {machine.cxx}"))
    if machine.device_type == "cuda" and machine.triton:
        findings.append(Finding("ok", f"Triton {machine.triton}"))
    findings += [Finding("note", *missing) for missing in missing_tools(machine, cpp=True)]
    if machine.device_type == "cuda" and not _has_python_headers():
        findings.append(_no_python_headers())
    return findings


def _has_python_headers() -> bool:
    return Path(sysconfig.get_paths()["include"], "Python.h").is_file()


def _no_python_headers() -> Finding:
    """Triton compiles a launcher for each kernel, in C, against Python's headers."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    advice = f"install them (Debian, Ubuntu: apt install python{version}-dev)"
    if sys.platform == "win32":
        beside = f"of an installed Python {version} beside this Python"
        advice = f"copy the folders include and libs {beside}"
    what = f"the headers of Python {version} (Python.h) are missing, which Triton needs"
    return Finding("note", what, advice)


def _store(store: ArtifactStore) -> Finding:
    try:
        store.check()
        entries = store.list()
    except AccelError as error:
        return Finding("problem", "the artifact store cannot be used", str(error))
    damaged = [entry for entry in entries if entry.problem]
    if damaged:
        what = f"{len(damaged)} damaged artifacts in {store.root}: {damaged[0].problem}"
        return Finding("note", what, "they are made again when needed")
    used, most = sum(entry.bytes for entry in entries) / MIB, store.max_bytes / MIB
    what = f"store {store.root}: {len(entries)} artifacts, {used:.1f} of {most:.0f} MiB"
    if len(entries) == 1:
        what = f"store {store.root}: 1 artifact, {used:.1f} of {most:.0f} MiB"
    return Finding("ok", what)


def _temporary() -> Finding:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if free < 2**30:
        what = f"only {free / 2**20:.0f} MiB are free in {folder}"
        return Finding("problem", what, "compiling needs about 1 GiB of temporary files")
    return Finding("ok", f"{free / 2**30:.0f} GiB free for temporary files in {folder}")


def _backends(target: Target, store: ArtifactStore) -> list[Finding]:
    """Return why each better backend does not serve, and which one does."""
    choice = Session().choose(target, store, Config(store=store.root))
    findings = [
        Finding("note", f"backend {name} does not work here", reason)
        for name, reason in choice.refused
    ]
    machine, backend = target.machine, choice.backend
    cuda = machine.device_type == "cuda"  # where CUDA graphs make even eager faster
    if backend is None or (backend.name == Eager.name and not cuda):
        what = "nothing can be compiled here: images are made at the plain speed of torch"
        return [*findings, Finding("problem", what, "see the notes above")]
    graphs = cuda and (backend.name != "aoti" or machine.recordable)
    served = f"automatic choice: {backend.name}" + (" with CUDA graphs" if graphs else "")
    return [*findings, Finding("ok", served)]
