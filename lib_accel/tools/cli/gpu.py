"""`gpu`: measure everything that only a GPU can show, in one run."""

from __future__ import annotations

import argparse
import time
from typing import Any

import psutil
import torch

from ...compile.machine import Machine, probe
from ...compile.source_digest import source_digest
from ...errors import AccelError
from ...store.signing import read_key
from ..gpu import jobs, summary
from ..gpu.launches import read_model
from ..gpu.record import Record
from ..gpu.run import carried_notes, import_carried
from ..gpu.run import run as run_jobs
from ..gpu.setting import Setting
from ..terminal import say, show
from .common import default_device, located, no_gpu

PRETENDED = "Pretend sm_"
"""How the card of the laboratory is called, on which kernels compute nothing."""


def run(args: argparse.Namespace) -> int:
    """Run the jobs. Exit status 1 where compiled code could not be timed."""
    began = time.monotonic() - (time.time() - psutil.Process().create_time())
    device = _device(args)
    machine = probe(device)
    pretended = machine.device_name.startswith(PRETENDED)
    if pretended and not args.dry_run:
        raise AccelError(
            f"{machine.device_name} computes nothing: times and errors would mean nothing. "
            "Expected a real card, or --dry-run"
        )
    dtype = args.dtype or ("float16" if device.type == "cuda" else "float32")
    for file in args.model:
        read_model(str(file))  # before minutes of work
    setting = _setting(args, device, dtype, pretended)
    args.out.mkdir(parents=True, exist_ok=True)
    record = Record(args.out, _identity(machine, dtype, args.dry_run), args.minutes)
    say(f"writing {record.path} as results come; the same command goes on where it stopped")
    for note in _notes(setting):
        say(note)
        record.note(note)
    run_jobs(jobs.JOBS, setting, record, args.minutes, began)
    text = summary.text(record.data, jobs.JOBS)
    record.path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    show(record.data, args, text)
    return 0 if _compiled_code_ran(record.jobs) else 1


def _device(args: argparse.Namespace) -> torch.device:
    """Return the device. It starts nothing on it: the memory is for the jobs."""
    name = args.device or default_device()
    if name == "cpu" and not (args.device or args.dry_run):
        raise AccelError(
            f"{no_gpu()}. A CPU needs hours for what `gpu` measures; --device cpu insists on it"
        )
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise AccelError(f"--device {name}: torch knows no such device; expected cuda") from e
    if device.type not in ("cpu", "cuda"):
        raise AccelError(f"--device {name}: expected cuda, cuda:1, ... or cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AccelError(f"--device {name}: {no_gpu()}")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _identity(machine: Machine, dtype: str, dry_run: bool) -> dict[str, Any]:
    """Return what must be the same for a run to go on."""
    return {
        **vars(machine),
        "cuda": torch.version.cuda,
        "dtype": dtype,
        "source": source_digest(),
        "dry_run": dry_run,
    }


def _setting(
    args: argparse.Namespace, device: torch.device, dtype: str, pretended: bool
) -> Setting:
    # stand-ins for checks must never come into a store that serves
    store = args.out.absolute() / "dry-run.store" if args.dry_run else located(args.store)
    carried = ""
    if args.carried:
        if not args.key and not args.allow_unsigned:
            raise AccelError(
                f"{args.carried} is native code: give --key FILE, the key it was signed with, or "
                "--allow-unsigned if you are sure of its origin"
            )
        carried = import_carried(args.carried, store, read_key(args.key) if args.key else None)
    return Setting(
        str(device),
        dtype,
        str(store),
        str(args.store_key.absolute()) if args.store_key else "",
        args.store_mib,
        carried,
        tuple(str(file.absolute()) for file in args.model),
        args.rounds,
        args.dry_run,
        pretended,
    )


def _notes(setting: Setting) -> list[str]:
    notes = carried_notes(jobs.JOBS, setting)
    if setting.carried:
        notes.append("carried code was compiled where Inductor could time no choice of its own")
    if setting.pretended:
        notes.append("this card is pretended: nothing here says how fast or how right anything is")
    return notes


def _compiled_code_ran(known: dict[str, dict[str, Any]]) -> bool:
    rows = [
        row
        for entry in known.values()
        for row in (entry.get("result") or {}).get("rows", ())
        if row["name"] == "aoti"
    ]
    return bool(rows) and all(row.get("median_s") for row in rows)
