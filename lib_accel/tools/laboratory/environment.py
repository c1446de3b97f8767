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

ROOT = Path(__file__).resolve().parents[3]
HOME = ROOT / ".venv.gpu"
TORCH = "torch==2.10.0"  # the newest whose wheel on PyPI has CUDA 12
SOURCES = Path(__file__).with_name("driver")
PROVIDED = re.compile(r"libcudart\.so|libcublas(Lt)?\.so")
"""The libraries that the driver stands in for, besides libcuda itself."""


def prepare(card: int = 86) -> tuple[Path, dict[str, str]]:
    """Return the Python of the laboratory, and the environment variables of a process in it.

    The process has a pretend card of compute capability `card` / 10. What is missing is made.
    Raises subprocess.CalledProcessError where the environment or the driver cannot be made,
    AccelError where the system is not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise AccelError("the laboratory needs Linux, because its driver is loaded by LD_PRELOAD")
    python = _environment()
    _build(_site_packages(python))
    return python, _variables(python, card)


def _environment() -> Path:
    """Return the Python of the laboratory; make its environment where there is none."""
    python, ready = HOME / "bin" / "python", HOME / "ready"
    if not ready.exists():
        print(f"Creating {HOME} with {TORCH} and CUDA: once, about 7 GB.", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        packages = [TORCH, "numpy", "pytest", "pyyaml", "-r", str(ROOT / "requirements.txt")]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        ready.touch()
    return python


def _variables(python: Path, card: int) -> dict[str, str]:
    """Return the environment of a process that has a pretend card of compute capability card/10.

    nvcc is not in its path, as on the machine of a user.
    """
    folders = os.environ.get("PATH", "").split(os.pathsep)
    without_nvcc = [folder for folder in folders if not Path(folder, "nvcc").exists()]
    driver = HOME / "driver"
    log = HOME / "driver.log"
    log.unlink(missing_ok=True)
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(python.parent), *without_nvcc]),
        "PRETEND_CARD": str(card),
        "PRETEND_LOG": str(log),
        "LD_PRELOAD": str(driver / "libcuda.so.1"),
        "TRITON_LIBCUDA_PATH": str(driver),
        "OMP_NUM_THREADS": "1",
    }


def _site_packages(python: Path) -> Path:
    """Return the folder with torch's package."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    command = [str(python), "-c", code]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def _build(packages: Path) -> None:
    """Build the driver where its sources are newer: what torch asks for and it lacks succeeds."""
    folder = HOME / "driver"
    library = folder / "libcuda.so.1"
    sources = sorted(SOURCES.glob("*.c"))
    newest = max(file.stat().st_mtime for file in (*SOURCES.iterdir(), Path(__file__)))
    if library.exists() and library.stat().st_mtime > newest:
        return
    folder.mkdir(exist_ok=True)
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
    headers = packages / "triton" / "backends" / "nvidia" / "include"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-fvisibility=hidden", f"-I{headers}"]
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
