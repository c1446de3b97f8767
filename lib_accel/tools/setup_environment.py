"""Prepare the Python environment of the command line and the tests, with venv and pip.

Standard library only. Where the running Python has the packages already, as the WebUI's own has,
nothing is made. Otherwise the command runs in `.venv` beside the project: the Python outside makes
that folder, and the one inside installs what it lacks.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = ("requirements.txt",)
TEST = (*RUN, "tests/requirements.txt")
TORCH = "torch==2.13.0"  # the version that the tests run with
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
MARK = ".venv/made-by-accel"
"""A file: `.venv` was made here. Its time is that of the last installation, 0 in the middle."""

BEGAN = "ACCEL_COMMAND_BEGAN"
"""Environment variable in which a command finds the time of its start, before any set-up."""

ADVICE = """The message above names the cause. The usual ones:
- No network: behind a proxy set HTTPS_PROXY, for an own certificate PIP_CERT; without any network
  put the wheels into a folder and set PIP_FIND_LINKS to it.
- No space: about 3 GB are needed, 10 GB with CUDA.
- No such package: use a 64-bit Python 3.10 to 3.13, or set ACCEL_TORCH, e.g. to torch==2.5.1.
- No venv or ensurepip: `sudo apt install python3-venv`; on Windows use the Python of python.org.
Run the same command again to continue."""


def ensure(lists: Sequence[str] = RUN, root: Path = ROOT) -> None:
    """Return if the packages in `lists` can be imported; else run the same command in `.venv`.

    lists: requirement files below `root`. Raises SystemExit with the status of the command, 1 if
    the set-up fails, 130 if interrupted.
    """
    os.environ.setdefault(BEGAN, str(time.time()))
    inside, mark = is_own_environment(root), root / MARK
    newest = max((root / name).stat().st_mtime for name in lists)
    stale = inside and mark.exists() and mark.stat().st_mtime < newest
    if not stale and not missing(lists, root):
        return
    try:
        python = _create(root)
        if inside:
            _install(lists, root)
            return
    except KeyboardInterrupt:
        say("Interrupted. Run the same command again to continue.")
        raise SystemExit(130) from None
    except (OSError, ValueError, subprocess.CalledProcessError) as error:  # e.g. ACCEL_TORCH
        say(f"Set-up failed: {error}\n{ADVICE}")
        raise SystemExit(1) from None
    command = [str(python), *sys.orig_argv[1:]]
    if os.name != "nt":
        os.execv(command[0], command)
    # Windows gives the console back as soon as a process calls execv, so wait here instead.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command itself
    raise SystemExit(subprocess.call(command))


def python_of(root: Path) -> Path:
    """Return where the Python of `.venv` is, or will be."""
    return root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def is_own_environment(root: Path = ROOT) -> bool:
    """Return whether this Python is that of `.venv`."""
    return Path(sys.prefix).resolve() == (root / ".venv").resolve()


def missing(lists: Sequence[str] = RUN, root: Path = ROOT) -> list[str]:
    """Return the packages in `lists` that the running Python lacks, in whatever version."""
    text = "\n".join((root / name).read_text(encoding="utf-8") for name in lists)
    names: list[str] = re.findall(r"^[A-Za-z0-9._-]+", text, re.MULTILINE)
    return [name for name in names if not any(importlib.metadata.distributions(name=name))]


def torch_arguments(system: str, nvidia: bool, configured: bool, override: str) -> list[str]:
    """Return what to pass to `pip install` for a torch that suits this machine.

    system: platform.system(). nvidia: whether there is an NVIDIA driver. configured: whether pip
    was told where to look. override: the arguments that the user set in ACCEL_TORCH, or "".
    """
    if override:
        return shlex.split(override, posix=system != "Windows")
    if configured or system == "Darwin" or (nvidia and system != "Windows"):
        return [TORCH]
    return [TORCH, "--extra-index-url", CUDA_INDEX if nvidia else CPU_INDEX]


def say(message: str) -> None:
    """Print to stderr; stdout belongs to the command."""
    print(f"[set-up] {message}", file=sys.stderr, flush=True)


def _create(root: Path) -> Path:
    """Make `.venv` where there is none that works; return its Python."""
    folder, python = root / ".venv", python_of(root)
    if folder.exists() and any(folder.iterdir()) and not (root / MARK).exists():
        say(f"{folder} was not made by this set-up. Rename or delete it, or install into it.")
        raise SystemExit(1)
    probe = [str(python), "-I", "-c", "import pip"]
    if not python.exists() or subprocess.run(probe, capture_output=True).returncode:
        say(f"Creating {folder}: once, some minutes. Nothing outside this folder is changed.")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        (root / MARK).touch()
        _python("venv", str(folder))
    return python


def _install(lists: Sequence[str], root: Path) -> None:
    """Install into the running Python what it lacks."""
    os.utime(root / MARK, (0, 0))
    for package in Path(sysconfig.get_path("purelib")).glob("*.dist-info"):
        if not (package / "INSTALLER").exists():  # written last: an interrupted pip left the rest
            shutil.rmtree(package)
    if "torch" in missing(lists, root):
        command = [sys.executable, "-I", "-m", "pip", "config", "list"]
        config = subprocess.run(command, capture_output=True, text=True)
        configured = bool(re.search(r"(index-url|find-links|no-index)=", config.stdout))
        nvidia = bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia").exists()
        override = os.environ.get("ACCEL_TORCH", "").strip()
        _pip_install(*torch_arguments(platform.system(), nvidia, configured, override))
    _pip_install(*(word for name in lists for word in ("-r", str(root / name))))
    (root / MARK).touch()
    importlib.invalidate_caches()
    say("Ready. The next run starts at once.")


def _pip_install(*arguments: str) -> None:
    say(f"pip install {' '.join(arguments)}")
    # Compiling torch to byte code takes longer than installing it, and little of it is used.
    options = ("--no-input", "--no-compile", "--no-user", "--disable-pip-version-check")
    _python("pip", "install", *options, *arguments)


def _python(module: str, *arguments: str) -> None:
    """Run `python -m module`, but not from the current folder or PYTHONPATH (`-I`).

    It has a session of its own, so that Ctrl-C reaches this process alone, which ends all of it.
    """
    command = [sys.executable, "-I", "-m", module, *arguments]
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    try:
        status = process.wait()
    except BaseException:
        if os.name == "nt":  # the console sends Ctrl-C to all of it, too
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
        else:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if status:
        raise subprocess.CalledProcessError(status, command)
