"""Set-up on a fresh machine: an environment in `.venv`, torch for this machine, the rest. Standard library only.

`ensure` returns at once where the running Python has what is needed (the WebUI's own, say: it is never changed).
Otherwise it prepares `.venv` beside the project and runs the same command again in it. `.venv/accel-setup.json` says
which lists were installed, so that a later run starts at once, and which step is in progress, so that an interrupted
set-up is noticed. Everything said here goes to stderr: stdout belongs to the command.

ACCEL_TORCH, read here as environment.py needs torch, is what pip is given for torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from lib_accel.tools.requirements import (
    TORCH,
    Requirement,
    explain,
    missing,
    parse_pip_settings,
    pip_own_source,
    read_lists,
    torch_attempts,
)

ROOT = Path(__file__).resolve().parents[2]
STAMP = "accel-setup.json"


class SetupError(Exception):
    """What went wrong with the set-up, and what to do about it, in words."""


@dataclasses.dataclass
class Stamp:
    """What `.venv/accel-setup.json` records."""

    step: str | None = None  # in progress; found on disk by a later run, it was interrupted
    adopted: bool = False  # the environment was here before us: add to it, never clear it
    torch: str = ""  # how torch was asked for
    torch_chosen: bool = False  # by the user, with ACCEL_TORCH
    lists: dict[str, str] = dataclasses.field(default_factory=dict)  # group -> digest of its list

    @classmethod
    def read(cls, venv: Path) -> Stamp | None:
        try:
            return cls(**json.loads((venv / STAMP).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return cls(step="reading " + STAMP)  # damaged: as good as interrupted

    def write(self, venv: Path) -> None:
        draft = venv / (STAMP + ".new")
        draft.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")
        draft.replace(venv / STAMP)

    def forget(self, lists: dict[str, list[Requirement]]) -> None:
        """Take out what the running interpreter shows to be gone."""
        for group, entries in lists.items():
            absent = missing(entries)
            if absent:
                self.lists.pop(group, None)
            if any(entry.name == "torch" for entry in absent):
                self.torch = ""

    def due(self, lists: dict[str, list[Requirement]], torch_override: str = "") -> list[str]:
        """The steps still to do: "torch", then groups."""
        steps = [
            group for group, entries in lists.items() if self.lists.get(group) != digest(entries)
        ]
        if any(entry.name == "torch" for entries in lists.values() for entry in entries):
            moved_on = not self.torch_chosen and self.torch != TORCH
            if not self.torch or moved_on or (torch_override and self.torch != torch_override):
                steps.insert(0, "torch")
        return steps


def ensure(
    module: str, arguments: Sequence[str], groups: Sequence[str] = ("run",), root: Path = ROOT
) -> None:
    """Return with the requirements of `groups` importable, or run `python -m module arguments` where they are."""
    venv = root / ".venv"
    inside = Path(sys.prefix).resolve() == venv.resolve()
    try:
        lists = {group: read_lists(root / "pyproject.toml")[group] for group in groups}
        absent = missing(entry for entries in lists.values() for entry in entries)
        stamp = Stamp.read(venv)
        interrupted = inside and stamp is not None and stamp.step is not None
        if not absent and not interrupted:
            return
        if inside or not ready(venv, stamp, lists):
            say(
                f"{sys.executable} lacks {', '.join(entry.text for entry in absent)}."
                if absent
                else "The set-up is not complete."
            )
            with locked(root / ".venv.lock"):
                prepare(venv, lists, inside)
    except KeyboardInterrupt:
        say("Set-up interrupted. The same command starts it again.")
        raise SystemExit(130) from None
    except SetupError as error:
        say(f"Set-up failed: {error}")
        raise SystemExit(1) from None
    except OSError as error:
        say(f"Set-up failed: {error}. {explain(str(error))}")
        raise SystemExit(1) from None
    if inside:
        importlib.invalidate_caches()
    else:
        rerun(venv, module, arguments)


def is_set_up(groups: Sequence[str] = ("run",), root: Path = ROOT) -> bool:
    """Whether `ensure` would have nothing to install."""
    lists = {group: read_lists(root / "pyproject.toml")[group] for group in groups}
    venv = root / ".venv"
    return ready(venv, Stamp.read(venv), lists) or not missing(
        entry for entries in lists.values() for entry in entries
    )


def say(line: str) -> None:
    print(f"[set-up] {line}", file=sys.stderr, flush=True)


def digest(entries: Sequence[Requirement]) -> str:
    return hashlib.sha256("\n".join(sorted(entry.text for entry in entries)).encode()).hexdigest()


def interpreter(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def usable(venv: Path) -> bool:
    """Whether its Python is there, and the one it was made from is too."""
    try:
        home = re.search(
            r"^home\s*=\s*(.+?)\s*$",
            (venv / "pyvenv.cfg").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    except OSError:
        return False
    return home is not None and Path(home.group(1)).is_dir() and interpreter(venv).exists()


def ready(venv: Path, stamp: Stamp | None, lists: dict[str, list[Requirement]]) -> bool:
    return (
        stamp is not None
        and stamp.step is None
        and not stamp.due(lists, os.environ.get("ACCEL_TORCH", ""))
        and usable(venv)
    )


def prepare(venv: Path, lists: dict[str, list[Requirement]], inside: bool) -> None:
    """Make `venv` hold `lists`: create it or take it over, then install what its stamp does not have."""
    stamp = Stamp.read(venv)  # again, as another process may just have done it all
    if inside and stamp is not None:
        stamp.forget(lists)
    if ready(venv, stamp, lists):
        return
    if stamp is None and usable(venv):
        say(f"Using the environment that is in {venv}; what is missing is added to it.")
        stamp = Stamp(adopted=True)
    elif stamp is None or not usable(venv) or (stamp.step and not stamp.adopted):
        if inside:
            raise SetupError(
                f"{venv} is incomplete and in use. Run the command with the Python that made it (deactivate first)."
            )
        stamp = create(venv, stamp)
    stamp.step = None
    for group in stamp.due(lists, os.environ.get("ACCEL_TORCH", "")):
        with step(stamp, venv, f"installing {group}"):
            if group == "torch":
                install_torch(venv, stamp)
            else:
                texts = [entry.text for entry in lists[group]]
                if texts:
                    say(f"Installing what `{group}` needs: {', '.join(texts)}")
                    pip_install(venv, texts)
                stamp.lists[group] = digest(lists[group])
    say("Ready. The next run starts at once.")


@contextlib.contextmanager
def step(stamp: Stamp, venv: Path, name: str) -> Iterator[None]:
    """Note the step in the stamp while it runs. A step that failed cleanly is over; a killed one stays noted."""
    stamp.step = name
    stamp.write(venv)
    try:
        yield
    except SetupError:
        stamp.step = None
        stamp.write(venv)
        raise
    stamp.step = None
    stamp.write(venv)


def create(venv: Path, found: Stamp | None) -> Stamp:
    """A new environment in `venv`; one of ours that is there is broken and goes."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise SetupError(
            f"{sys.executable} has no venv or ensurepip module. On Debian and Ubuntu: sudo apt install {package}. On Windows "
            "take Python from python.org rather than an embedded one. Or install the lists in pyproject.toml yourself."
        )
    for old in venv.parent.glob(".venv.old-*"):
        shutil.rmtree(old, ignore_errors=True)
    if found is not None and not found.adopted:
        say(
            f"An earlier set-up stopped while {found.step}: starting afresh."
            if found.step
            else f"The Python of {venv} is gone."
        )
        shutil.rmtree(venv.rename(venv.with_name(f".venv.old-{os.getpid()}")), ignore_errors=True)
    elif venv.is_dir() and any(venv.iterdir()):
        raise SetupError(
            f"{venv} is there, but is no environment that works. Rename or delete it, then try again."
        )
    free_gb = shutil.disk_usage(venv.parent).free / 1e9
    if free_gb < 3:
        say(
            f"Only {free_gb:.1f} GB are free here; about 3 GB are needed, 10 GB with CUDA. Trying all the same."
        )
    say(
        f"Creating an environment for this project in {venv}; nothing outside it is changed. Once; takes some minutes."
    )
    venv.mkdir(exist_ok=True)
    stamp = Stamp()
    with step(stamp, venv, "creating the environment"):
        done = subprocess.run(
            [sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True
        )
        if done.returncode:
            raise SetupError(
                f"`{sys.executable} -m venv {venv}` failed.\n{done.stdout}{done.stderr}\n{explain(done.stderr)}"
            )
    return stamp


def install_torch(venv: Path, stamp: Stamp) -> None:
    override = os.environ.get("ACCEL_TORCH", "")
    present = torch_version(venv) if stamp.adopted else ""
    if present and not override and Requirement.parse("torch>=2.1").admits(present):
        say(f"torch {present} is there; it stays as it is.")
        stamp.torch, stamp.torch_chosen = f"torch=={present}", True
        return
    listed = subprocess.run(
        [str(interpreter(venv)), "-m", "pip", "config", "list"], capture_output=True, text=True
    )
    own_source = pip_own_source(parse_pip_settings(listed.stdout))
    attempts = torch_attempts(platform.system(), has_nvidia(), own_source, override)
    for number, attempt in enumerate(attempts):
        say(f"Installing {attempt.arguments[0]} {attempt.why}")
        try:
            pip_install(venv, attempt.arguments)
            break
        except SetupError as error:
            if number + 1 == len(attempts):
                raise
            say(f"That did not work. {error}")
    stamp.torch, stamp.torch_chosen = override or TORCH, bool(override)


def torch_version(venv: Path) -> str:
    """The version of the torch in `venv`, "" for none; torch itself is not loaded."""
    code = "from importlib.metadata import version; print(version('torch'))"
    return subprocess.run(
        [str(interpreter(venv)), "-c", code], capture_output=True, text=True
    ).stdout.strip()


def has_nvidia() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()


def pip_install(venv: Path, arguments: Sequence[str]) -> None:
    """pip's progress is shown as it comes; its complaints are shown too, and kept to explain a failure.

    Without byte-compiling: for torch that takes three times as long as installing it, and most of it is never imported.
    """
    command = [
        str(interpreter(venv)),
        "-m",
        "pip",
        "install",
        "--no-input",
        "--no-compile",
        "--disable-pip-version-check",
        *arguments,
    ]
    complaints: list[str] = []
    environment = {**os.environ, "PIP_USER": "0"}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        for line in process.stderr or ():
            sys.stderr.write(line)
            sys.stderr.flush()
            complaints.append(line)
    if process.returncode:
        raise SetupError(
            f"`pip install {' '.join(arguments)}` ended with {process.returncode}. {explain(''.join(complaints))}"
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file against other processes; it is free again when this one ends, however it ends."""
    with path.open("a+") as file:
        told = False
        while True:
            try:
                if sys.platform == "win32":
                    import msvcrt

                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    break  # a file system without locks: go on as if alone
            if not told:
                say("Another process is setting up; waiting for it.")
                told = True
            time.sleep(0.3)
        yield


def rerun(venv: Path, module: str, arguments: Sequence[str]) -> NoReturn:
    command = [str(interpreter(venv)), "-m", module, *arguments]
    if os.name != "nt":
        os.execv(command[0], command)
    with subprocess.Popen(
        command
    ) as process:  # Windows: exec would give the console back too early
        while process.returncode is None:
            with contextlib.suppress(KeyboardInterrupt):  # the child has had it too, and decides
                process.wait()
    raise SystemExit(process.returncode)
