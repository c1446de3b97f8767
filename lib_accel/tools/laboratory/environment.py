"""Make the environment of the laboratory, build its driver, and start commands in it.

The environment has a torch of its own; the driver of driver/*.c is built for it. It needs Linux,
gcc, binutils and 7 GB.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from ...errors import AccelError
from ..terminal import say

ROOT = Path(__file__).resolve().parents[3]
HOME = ROOT / ".venv.gpu"
TORCH = "2.10.0"  # the newest whose wheel on PyPI has CUDA 12
TENSORRT = "tensorrt_rtx>=1.7; platform_machine == 'x86_64' and python_version < '3.14'"
SOURCES = Path(__file__).with_name("driver")
PROVIDED = re.compile(r"libcudart\.so|libcublas(Lt)?\.so")
"""The libraries that the driver stands in for, besides libcuda itself."""


def home(torch: str | None = TORCH) -> Path:
    """Return the folder of the environment with this version of torch; None: with this Python's."""
    return HOME if torch == TORCH else HOME.with_name(f"{HOME.name}-{torch or 'own'}")


def prepare(card: int = 86, torch: str | None = TORCH) -> tuple[Path, dict[str, str]]:
    """Return the Python of the laboratory, and the environment variables of a process in it.

    The process has a pretend card of compute capability `card` / 10. What is missing is made. Where
    `torch` is None, this Python is taken, whose torch must have CUDA. Raises
    subprocess.CalledProcessError where the environment or the driver cannot be made, AccelError
    where the system is not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise AccelError("the laboratory needs Linux, because its driver is loaded by LD_PRELOAD")
    folder = home(torch)
    python = Path(sys.executable) if torch is None else _environment(folder, torch)
    _build(_site_packages(python), folder / "driver")
    return python, _variables(python, folder, card)


def _environment(folder: Path, torch: str) -> Path:
    """Return the Python of the laboratory; make its environment where there is none."""
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        say(f"Creating {folder} with torch {torch} and CUDA: once, about 7 GB.")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        packages = [f"torch=={torch}", "numpy", "pytest", "pyyaml", TENSORRT]
        packages += ["-r", str(ROOT / "requirements.txt")]
        install = [str(python), "-m", "pip", "install", "-q", *packages]
        subprocess.run(install, check=True, stdout=sys.stderr)
        ready.touch()
    return python


def _variables(python: Path, home: Path, card: int) -> dict[str, str]:
    """Return the environment of a process that has a pretend card of compute capability card/10.

    nvcc is not in its path, as on the machine of a user.
    """
    folders = os.environ.get("PATH", "").split(os.pathsep)
    without_nvcc = [folder for folder in folders if not Path(folder, "nvcc").exists()]
    driver = home / "driver"
    log = home / "driver.log"
    log.unlink(missing_ok=True)
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(python.parent), *without_nvcc]),
        "PRETEND_CARD": str(card),
        "PRETEND_LOG": str(log),
        "LD_PRELOAD": str(driver / "libcuda.so.1"),
        "TRITON_LIBCUDA_PATH": str(driver),
        "OMP_NUM_THREADS": "1",
        # no choice is faster than another here, and max-autotune would time them for minutes
        "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS": "ATEN",
        "TORCHINDUCTOR_MAX_AUTOTUNE_CONV_BACKENDS": "ATEN",
    }


def _site_packages(python: Path) -> Path:
    """Return the folder with torch's package."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    command = [str(python), "-c", code]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def _build(packages: Path, folder: Path) -> None:
    """Build the driver where its sources are newer: what torch asks for and it lacks succeeds."""
    library = folder / "libcuda.so.1"
    sources = sorted(SOURCES.glob("*.c"))
    newest = max(file.stat().st_mtime for file in (*SOURCES.iterdir(), Path(__file__)))
    if library.exists() and library.stat().st_mtime > newest:
        return
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _symbols("--undefined-only", packages.glob("torch/lib/*.so"))
    theirs = (f for f in packages.glob("nvidia/**/*.so*") if PROVIDED.match(f.name))
    provided = wanted & _symbols("--defined-only", theirs)
    text = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    stubs = folder / "stubs.c"
    stubs.write_text(
        "".join(
            f'__attribute__((visibility("default"))) int {name}(void) {{ return 0; }}\n'
            for name in sorted(provided)
            if not re.search(rf"\b{name}\(", text)
        ),
        encoding="utf-8",
    )
    # Triton's headers are those of CUDA 12; the wheels of CUDA 13 bring their own, but not all
    headers = ("nvidia/cu13/include", "triton/backends/nvidia/include")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-fvisibility=hidden"]
    command += [f"-I{packages / folder}" for folder in headers]
    command += ["-Wl,-soname,libcuda.so.1", "-o", f"{library}.new", *map(str, sources), str(stubs)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    Path(f"{library}.new").replace(library)
    link = folder / "libcuda.so"  # by which compilers look for it
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)


def _symbols(option: str, files: Iterable[Path]) -> set[str]:
    """Return the names that `nm` lists, without their versions."""
    command = ["nm", "-D", option, *map(str, files)]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    lines = (line.split() for line in listed.splitlines())
    return {words[-1].partition("@")[0] for words in lines if len(words) > 1}
