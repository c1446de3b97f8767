"""What a worker process and its compilers find in their environment."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

from lib_accel.compile.aoti import worker_environment as module
from lib_accel.compile.aoti.worker_environment import worker_environment

from .. import tiny
from .kit import posix


@posix
def test_the_environment_names_compiler_and_headers(tmp_path: Path):
    cpu = tiny.target().machine
    assert worker_environment(tmp_path, replace(cpu, cxx="/opt/clang++"))["CXX"] == "/opt/clang++"
    gpu = worker_environment(tmp_path, replace(cpu, device_type="cuda", gpu_headers="/triton"))
    assert gpu["CUDA_HOME"] == "/triton"
    assert Path(gpu["CPATH"].split(os.pathsep)[-1], "nv", "target").is_file()
    toolkit = worker_environment(tmp_path, replace(cpu, device_type="cuda", gpu_headers=""))
    assert "CUDA_HOME" not in toolkit.keys() - os.environ.keys()


def test_temporary_files_and_caches_lie_in_the_folder_of_the_job(tmp_path: Path):
    environment = worker_environment(tmp_path, tiny.target().machine)
    for name in ("TMPDIR", "TEMP", "TMP", "TORCHINDUCTOR_CACHE_DIR"):
        assert Path(environment[name]).is_relative_to(tmp_path)


@posix
def test_headers_for_host_and_device_compile_on_the_host(tmp_path: Path):
    """Triton's cuda_fp16.h has bare statements in two branches, like this."""
    code = (
        "#include <nv/target>\n"
        "int f(int x) {"
        ' NV_IF_ELSE_TARGET(NV_IS_DEVICE, asm("no such");, int y = x; return y;) }\n'
    )
    (tmp_path / "both.cpp").write_text(code)
    include = Path(module.__file__).with_name("include")
    files = ["-o", str(tmp_path / "both.o"), str(tmp_path / "both.cpp")]
    subprocess.run(["g++", "-c", f"-I{include}", *files], check=True)
