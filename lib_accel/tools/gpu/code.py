"""Get the compiled code of a UNet: stored before, carried here and checked, or compiled here."""

from __future__ import annotations

import os
import time
from typing import Any

from ...compile.accuracy import CHECK_SIZES, Verdict, check_unit
from ...compile.backends.aoti.backend import Aoti
from ...compile.backends.aoti.load import load_unit, misfit
from ...compile.backends.kernels import nvrtc
from ...compile.backends.kernels.backend import recipes_of
from ...compile.backends.kernels.driver import load_kernels
from ...compile.backends.kernels.job import keep
from ...compile.backends.kernels.units import unit_fn
from ...compile.jobs import Job as CompileJob
from ...compile.machine import free_memory
from ...compile.target import Target
from ...compile.units import UnitFn, describe
from ...config import Config
from ...errors import AccelError, ArtifactRejected, BackendUnavailable
from ...model.specs import Spec
from ...store import Artifact, ArtifactStore
from ..bench.measure import synchronize
from .jobs import Job
from .setting import Setting
from .teller import Teller

PRETENDED = Verdict((1e-3,) * len(CHECK_SIZES), (1e-3,) * len(CHECK_SIZES))
"""Stands for a check on the laboratory's card, where no code can pass one."""

FREE_BYTES = 4 * 2**30
"""Video memory for each process that compiles: nothing else runs on the card meanwhile."""


def get_code(job: Job, setting: Setting, tell: Teller) -> None:
    """Put every unit of the UNet into the store, and tell the error of each that was checked."""
    target, store = setting.target(job), setting.store
    rows: dict[Spec, dict[str, Any]] = {}
    tell.know(carried=unfit(target, setting.carried_store))
    for unit in target.units:
        tell.at(describe(unit))
        known = _stored(unit, target, store)
        rows[unit] = {
            "unit": describe(unit),
            "origin": "stored before",
            **(_carried(unit, target, setting, store) if known is None else known),
        }
        tell.know(units=[*rows.values()])
    tell.at("")
    missing = [unit for unit in target.units if _stored(unit, target, store) is None]
    if missing:
        tell.say(f"{len(missing)} of {len(target.units)} units have to be compiled here")
        _compile(target, setting, store, tell)
    for unit in missing:
        rows[unit] |= {"origin": "compiled here", **(_stored(unit, target, store) or {})}
    tell.know(units=[*rows.values()])


def unfit(target: Target, carried: ArtifactStore | None) -> str | None:
    """Return why carried code does not serve `target`, or None where all or none is carried."""
    if carried is None:
        return None
    entries = {entry.key: entry for entry in carried.list()}
    missing = sum(key not in entries for key in target.keys.values())
    if not missing:
        return None
    recipes = [entry.artifact.recipe for entry in entries.values() if entry.artifact]
    differences = {differs for recipe in recipes if (differs := target.incompatibility(recipe))}
    what = f"{missing} of {len(target.units)} units of {target.name} are not in the carried code"
    return (
        f"{what}, which was made for {'; or '.join(sorted(differences))}" if differences else what
    )


def _stored(unit: Spec, target: Target, store: ArtifactStore) -> dict[str, Any] | None:
    """Return what the check of a stored unit found; None where it is not stored."""
    try:
        artifact = store.get(target.keys[unit])
    except ArtifactRejected:
        return None
    return artifact.verdict if artifact else None


def _carried(unit: Spec, target: Target, setting: Setting, store: ArtifactStore) -> dict[str, Any]:
    """Check the carried code of a unit on this card, and store it if it passes."""
    carried = setting.carried_store
    artifact = carried.get(target.keys[unit]) if carried else None
    if artifact is None:
        return {"origin": "missing"}
    if describe(unit) in setting.without:
        return {"origin": "missing", "problem": "its carried code ended the process"}
    assert carried is not None
    began = time.perf_counter()
    try:
        verdict = _check(artifact, carried, unit, target)
    except (RuntimeError, AccelError) as e:
        synchronize(target.device)  # raises where the card takes no more work in this process
        return {"origin": "missing", "problem": f"carried, but {str(e).strip()[:500]}"}
    row = {"origin": "carried", **verdict.to_dict(), "seconds": time.perf_counter() - began}
    if setting.pretended:
        row["problem"], verdict = "not checked: a pretend card computes nothing", PRETENDED
    if not verdict.passed:
        return {**row, "origin": "missing", "problem": f"carried, but inaccurate: {verdict}"}
    store.put(
        target.recipe(unit),
        {name: artifact.path / name for name in artifact.files},
        verdict.to_dict(),
        keep=target.keys.values(),
        name=target.name,
        made_with=artifact.manifest.get("made_with"),
    )
    return row


def _check(artifact: Artifact, carried: ArtifactStore, unit: Spec, target: Target) -> Verdict:
    folder = carried.place(artifact)
    cpu = artifact.manifest.get("made_with", {}).get("cpu")
    if why := misfit(folder, target.machine, cpu):
        raise ArtifactRejected(why, artifact.key)
    code = load_unit(folder, target.device)
    return check_unit(unit, code, target.dtype, target.device, alone=True)


def get_kernels(job: Job, setting: Setting, tell: Teller) -> None:
    """Compile the fused kernels, and store every unit that they compute well."""
    target, store = setting.target(job), setting.store
    recipes, rows = recipes_of(target), []
    began, arch = time.perf_counter(), nvrtc.architecture(target.device)
    code = nvrtc.compile_kernels(arch, target.dtype)
    tell.know(
        arch=arch,
        nvrtc=nvrtc.version(),
        compile_s=time.perf_counter() - began,
        code_bytes=len(code),
    )
    kernels = load_kernels(code, target.device, target.dtype)
    for key, (unit, _) in recipes.items():
        name = describe(unit)
        tell.at(name)
        if name in setting.without:
            rows.append({"unit": name, "origin": "missing", "problem": "it ended the process"})
            continue
        row = _verified(unit, unit_fn(unit, kernels), target, setting)
        rows.append({"unit": name, "origin": "compiled here", **row})
        tell.know(units=rows)
        if "problem" not in row:
            keep(store, code, recipes, key, Verdict.from_dict(row), target.name)
    tell.at("")


def _verified(unit: Spec, fn: UnitFn, target: Target, setting: Setting) -> dict[str, Any]:
    """Return what a check on this card finds, with the `problem` where there is one."""
    try:
        verdict = check_unit(unit, fn, target.dtype, target.device, alone=True)
    except RuntimeError as e:
        synchronize(target.device)  # raises where the card takes no more work in this process
        return {"problem": str(e).strip()[:500]}
    if setting.pretended:
        return PRETENDED.to_dict()
    row = verdict.to_dict()
    return row if verdict.passed else {**row, "problem": f"inaccurate: {verdict}"}


def most_workers() -> int:
    """Return how many processes may compile at once: this machine does nothing else meanwhile."""
    return max(1, min(8, (os.cpu_count() or 1) // 2))


def _compile(target: Target, setting: Setting, store: ArtifactStore, tell: Teller) -> None:
    if setting.pretended:  # kernels compute nothing: no unit can pass the check of a compile job
        raise BackendUnavailable(
            "a pretend card checks nothing; the laboratory's prebuild compiles"
        )
    room = free_memory(setting.device) / FREE_BYTES
    backend = Aoti(int(max(1, min(room, most_workers()))))
    if why := backend.why_not(target, store, Config(store=store.root)):
        raise BackendUnavailable(why)
    job = backend.make(target, store)
    if not isinstance(job, CompileJob):
        return
    while not job.wait(5.0):
        tell.say(f"{job.progress().stage}, {job.progress().elapsed_s:.0f} s")
    job.result()
