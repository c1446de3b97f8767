"""Prepare the Python environment of the command line and the tests, with venv and pip.

Standard library only. Where the running Python has the packages already, as the WebUI's own has,
nothing is made. Otherwise `.venv` is made beside the project, and the same command runs there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
RUN = ("requirements.txt",)
TEST = (*RUN, "tests/requirements.txt")
TORCH = "torch==2.13.0"  # the version that the tests run with
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
IMPORT_NAMES = {"pillow": "PIL", "pytest-xdist": "xdist"}
ADVICE = """The message above names the cause. The usual ones:
- No network: behind a proxy set HTTPS_PROXY, for an own certificate PIP_CERT; without any network
  put the wheels into a folder and set PIP_FIND_LINKS to it.
- No space: about 3 GB are needed, 10 GB with CUDA.
- No such package: use a 64-bit Python 3.10 to 3.13, or set ACCEL_TORCH, e.g. to torch==2.5.1.
- No venv or ensurepip: `sudo apt install python3-venv`; on Windows use the Python of python.org.
Run the same command again to continue."""


def ensure(
    module: str, arguments: Sequence[str], lists: Sequence[str] = RUN, root: Path = ROOT
) -> None:
    """Return if the packages in `lists` can be imported; else run the same command in `.venv`.

    lists: requirement files below `root`. The command is `python -m module arguments`.
    Raises SystemExit with the status of the command, 1 if the set-up fails, 130 if interrupted.
    """
    environment = Environment(root, lists)
    inside = Path(sys.prefix).resolve() == environment.folder.resolve()
    absent = missing(lists, root)
    if not absent and not (inside and environment.stamp.exists() and environment.due()):
        return
    try:
        if inside or environment.due():
            say(f"{sys.executable} lacks {', '.join(absent) or 'a part of the set-up'}.")
            environment.prepare(again=[*absent, *lists] if inside else [])
    except KeyboardInterrupt:
        say("Interrupted. Run the same command again to continue.")
        raise SystemExit(130) from None
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"Set-up failed: {error}\n{ADVICE}")
        raise SystemExit(1) from None
    if inside:
        importlib.invalidate_caches()
    else:
        environment.run(["-m", module, *arguments])


def missing(lists: Sequence[str] = RUN, root: Path = ROOT) -> list[str]:
    """Return the packages in `lists` that the running Python cannot import."""
    text = "\n".join((root / name).read_text(encoding="utf-8") for name in lists)
    names: list[str] = re.findall(r"^[A-Za-z0-9._-]+", text, re.MULTILINE)
    return [n for n in names if importlib.util.find_spec(IMPORT_NAMES.get(n, n)) is None]


def say(message: str) -> None:
    """Print to stderr; stdout belongs to the command."""
    print(f"[set-up] {message}", file=sys.stderr, flush=True)


class Environment:
    """The folder `.venv` of a project. A stamp in it records each finished step and its value."""

    def __init__(self, root: Path = ROOT, lists: Sequence[str] = RUN) -> None:
        self.root, self.folder = root, root / ".venv"
        self.python = self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.stamp = self.folder / "accel-setup.json"
        self.lists = {name: (root / name).read_text(encoding="utf-8") for name in lists}

    def due(self, again: Sequence[str] = ()) -> dict[str, str]:
        """Return the steps in `again` and those that are not recorded with today's value."""
        done = self._done()
        torch = os.environ.get("ACCEL_TORCH", "").strip() or done.get("ACCEL_TORCH") or TORCH
        steps = {"create": "", "torch": torch, **self.lists}
        return {s: value for s, value in steps.items() if s in again or done.get(s) != value}

    def prepare(self, again: Sequence[str] = ()) -> None:
        """Do the steps that are due.

        Raises CalledProcessError if venv or pip fails, OSError if a file cannot be written.
        """
        with _locked(self.root / ".venv.lock"):
            if self.folder.exists() and any(self.folder.iterdir()) and not self.stamp.exists():
                say(f"{self.folder} was not made by this set-up. Rename or delete it, or use it:")
                say(f"install into it with pip install -r {' -r '.join(self.lists)}")
                raise SystemExit(1)
            due = self.due(again)
            done = {step: value for step, value in self._done().items() if step not in due}
            if "create" in due:
                self._create()
            for step, value in due.items():
                self._record(done)  # without the step: it stays due if it is interrupted
                if step == "torch":
                    done["ACCEL_TORCH"] = "" if value == TORCH else value
                    self._install_torch(done["ACCEL_TORCH"])
                elif step != "create":
                    self._pip_install("-r", str(self.root / step))
                done[step] = value
            self._record(done)
        say("Ready. The next run starts at once.")

    def run(self, arguments: Sequence[str]) -> NoReturn:
        """Run the environment's Python with `arguments` in place of this process."""
        command = [str(self.python), *arguments]
        if os.name != "nt":
            os.execv(command[0], command)
        # Windows gives the console back as soon as a process calls execv, so wait here instead.
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command itself
        raise SystemExit(subprocess.call(command))

    def _create(self) -> None:
        say(f"Creating {self.folder}: once, some minutes. Nothing outside this folder is changed.")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(exist_ok=True)
        self._record({})
        command = [sys.executable, "-m", "venv", str(self.folder)]
        subprocess.run(command, stdout=sys.stderr, check=True)

    def _install_torch(self, override: str) -> None:
        command = [self.python, "-m", "pip", "config", "list"]
        source = pip_source(subprocess.run(command, capture_output=True, text=True).stdout)
        nvidia = bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia").exists()
        if source and nvidia and os.name == "nt":
            say(f"torch comes from pip's {source}. If that is not one with CUDA, set ACCEL_TORCH")
            say(f"to: {TORCH} --index-url {CUDA_INDEX}")
        *others, last = torch_attempts(platform.system(), nvidia, source, override)
        for arguments in others:
            with contextlib.suppress(subprocess.CalledProcessError):  # pip has printed the cause
                return self._pip_install(*arguments)
        return self._pip_install(*last)

    def _pip_install(self, *arguments: str) -> None:
        say(f"pip install {' '.join(arguments)}")
        for pattern in ("lib/*/site-packages/*.dist-info", "Lib/site-packages/*.dist-info"):
            for package in self.folder.glob(pattern):
                # pip writes INSTALLER last: without it an interrupted pip left half a package.
                if not (package / "INSTALLER").exists():
                    shutil.rmtree(package)
        # Compiling torch to byte code takes longer than installing it, and little of it is used.
        options = ("--no-input", "--no-compile", "--disable-pip-version-check")
        command = [str(self.python), "-m", "pip", "install", *options, *arguments]
        environment = {**os.environ, "PIP_USER": "0"}
        subprocess.run(command, env=environment, stdout=sys.stderr, check=True)

    def _done(self) -> dict[str, str]:
        """Return what the stamp records; nothing where it or the environment does not work."""
        try:
            subprocess.run([self.python, "-c", "import pip"], capture_output=True, check=True)
            return dict(json.loads(self.stamp.read_text(encoding="utf-8")))
        except (OSError, ValueError, subprocess.CalledProcessError):
            return {}

    def _record(self, done: dict[str, str]) -> None:
        draft = self.stamp.with_suffix(".new")
        draft.write_text(json.dumps(done, indent=1), encoding="utf-8")
        draft.replace(self.stamp)


def torch_attempts(system: str, nvidia: bool, source: str, override: str) -> list[list[str]]:
    """Return what to pass to `pip install` for a torch that suits this machine, best first.

    system: platform.system(). nvidia: whether there is an NVIDIA driver. source: where pip is
    configured to look, or "". override: the arguments that the user set in ACCEL_TORCH, or "".
    """
    if override:
        return [shlex.split(override, posix=system != "Windows")]
    if source or system == "Darwin" or (nvidia and system != "Windows"):
        return [[TORCH]]
    return [[TORCH, "--index-url", CUDA_INDEX if nvidia else CPU_INDEX], [TORCH]]


def pip_source(settings: str) -> str:
    """Return the first line of `pip config list` that says where pip looks for packages, or ""."""
    where = r"\S*\.(index-url|extra-index-url|find-links|no-index)='(?!'|0'|false')"
    return next((line for line in settings.splitlines() if re.match(where, line)), "")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which the system frees when the process ends."""
    with path.open("a") as file:
        waiting = False
        while True:
            try:
                if sys.platform == "win32":
                    import msvcrt

                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if not waiting:
                    say("Another process is setting up; waiting for it.")
                waiting = True
                time.sleep(0.3)
        yield
