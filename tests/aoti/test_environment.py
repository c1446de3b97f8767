"""What a worker process and its compilers find in their environment."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lib_accel.compile.backends.aoti import worker_environment as module
from lib_accel.compile.backends.aoti.worker_environment import worker_environment
from lib_accel.compile.machine import is_x86_64

from .. import tiny
from .kit import posix


@posix
def test_the_environment_names_compiler_and_headers(tmp_path: Path):
    cpu = tiny.target().machine
    compiler = worker_environment(tmp_path, replace(cpu, cxx="/opt/clang++"))["CXX"]
    assert Path(compiler).name == "clang++"
    gpu = worker_environment(tmp_path, replace(cpu, device_type="cuda", gpu_headers="/triton"))
    assert gpu["CUDA_HOME"] == "/triton"
    assert Path(gpu["CPATH"].split(os.pathsep)[-1], "nv", "target").is_file()
    toolkit = worker_environment(tmp_path, replace(cpu, device_type="cuda", gpu_headers=""))
    assert "CUDA_HOME" not in toolkit.keys() - os.environ.keys()


@posix
@pytest.mark.skipif(not is_x86_64(), reason="only x86-64 has levels")
@pytest.mark.parametrize(
    ("device_type", "level", "known", "unknown"),
    [
        ("cpu", "x86-64-v4", ["avx512f", "fma"], ["amx-tile", "avx512vnni", "avx512bf16"]),
        ("cpu", "x86-64-v3", ["avx2", "fma"], ["avx512f"]),
        ("cpu", "x86-64-v2", ["sse4.2"], ["avx2", "fma"]),
        ("cuda", "8.6", ["sse4.2"], ["avx2", "fma"]),
    ],
)
def test_the_compiler_keeps_to_the_instruction_set_of_the_key(
    device_type: str, level: str, known: list[str], unknown: list[str], tmp_path: Path
):
    """An artifact for a GPU, or for a level, is loaded on other processors as well.

    torch tries what the compiler knows, and asks for no more.
    """
    machine = replace(tiny.target().machine, device_type=device_type, capability=level)
    environment = worker_environment(tmp_path, machine)

    def macros(*flags: str) -> str | None:
        command = [
            environment["CXX"],
            "-march=native",
            *flags,
            "-dM",
            "-E",
            "-x",
            "c++",
            os.devnull,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        return None if done.returncode else done.stdout

    defined = macros(*(f"-m{name}" for name in known))
    assert defined is not None
    for name in known:
        assert f"#define __{name.upper().replace('.', '_')}__ 1\n" in defined
    for name in unknown:
        assert f"#define __{name.upper().replace('-', '_')}__ 1\n" not in defined
        assert macros(f"-m{name}") is None
    gpu = device_type == "cuda"
    assert (environment.get("ATEN_CPU_CAPABILITY") == "default") == gpu


@posix
def test_a_compiler_with_a_quote_in_its_path_is_called(tmp_path: Path):
    real = tmp_path / "o'brien's $HOME" / "c++"
    real.parent.mkdir()
    real.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    real.chmod(0o700)
    machine = replace(tiny.target().machine, cxx=str(real))
    compiler = worker_environment(tmp_path, machine)["CXX"]
    given = ["-march=native", "a b.cpp", "*", "-DX='1'"]
    passed = subprocess.run([compiler, *given], check=True, capture_output=True, text=True).stdout
    assert passed.splitlines()[:3] == given[1:]


def test_temporary_files_and_caches_lie_in_the_folder_of_the_job(tmp_path: Path):
    environment = worker_environment(tmp_path, tiny.target().machine)
    for name in ("TMPDIR", "TEMP", "TMP", "TORCHINDUCTOR_CACHE_DIR"):
        assert Path(environment[name]).is_relative_to(tmp_path)


def test_two_workers_share_the_cores(tmp_path: Path):
    """torch's own default is a compiling process for every core, in each worker."""
    environment = worker_environment(tmp_path, tiny.target().machine, threads=3)
    code = "from torch._inductor import config; print(config.compile_threads)"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert printed.stdout.split() == ["3"]


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
