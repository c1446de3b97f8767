"""Finding compilers, CUDA's headers and Triton on a machine."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_accel.compile import machine
from lib_accel.compile.machine import find_cxx, find_gpu_headers, probe


def test_the_gpu_headers_are_those_of_the_toolkit_else_those_of_triton(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(machine, "CUDA_TOOLKIT", tmp_path / "toolkit")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    package = tmp_path / "triton"
    package.mkdir()
    (package / "__init__.py").touch()
    assert find_gpu_headers() is None
    headers = package / "backends" / "nvidia" / "include"
    headers.mkdir(parents=True)
    (headers / "cuda_runtime.h").touch()
    assert find_gpu_headers() == str(headers.parent)
    toolkit = tmp_path / "toolkit" / "include"
    toolkit.mkdir(parents=True)
    assert find_gpu_headers() == str(headers.parent), "a folder without headers is no toolkit"
    (toolkit / "cuda.h").touch()
    assert find_gpu_headers() == ""
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/local/bin/nvcc")
    assert find_gpu_headers() == str(headers.parent), "torch goes by where nvcc lies"


def test_code_depends_on_the_instruction_set_and_not_on_the_name_of_the_processor(
    monkeypatch: pytest.MonkeyPatch,
):
    here = probe(torch.device("cpu"))
    other = replace(here, device_name="Another processor", triton="3.6.0", cxx="/opt/c++")
    assert other.identity() == here.identity()
    assert replace(here, capability="x86-64-v2").identity() != here.identity()
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    for torchs, ours in (("AVX512", "4"), ("AVX2", "3"), ("DEFAULT", "2"), ("NO AVX", "2")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=torchs: name)
        assert machine.instruction_set() == f"x86-64-v{ours}"
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(machine, "_cpu_fields", lambda: {"Features": "fp asimd"})
    without = machine.instruction_set()
    monkeypatch.setattr(machine, "_cpu_fields", lambda: {"Features": "fp asimd sve"})
    assert machine.instruction_set() != without


def test_on_windows_nothing_is_read_from_a_folder_that_others_can_make(
    monkeypatch: pytest.MonkeyPatch,
):
    """There, `/proc` is `C:\\proc`, which every user may make."""
    monkeypatch.setattr(sys, "platform", "win32")
    # it calls Windows itself from Python 3.12 on
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(Path, "read_text", lambda path: pytest.fail(f"{path} was read"))
    assert machine.probe.__wrapped__(torch.device("cpu")).device_name


def test_no_compiler_is_found_on_an_empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert find_cxx() is None
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    assert find_cxx() is None


def test_the_compiler_that_cxx_names_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compiler = tmp_path / ("mine.exe" if sys.platform == "win32" else "mine")
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert find_cxx() == str(compiler)


def test_a_triton_that_does_not_import_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """For instance triton-windows without the libraries it needs."""
    (tmp_path / "triton.py").write_text(
        "raise ImportError('DLL load failed while importing libtriton')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert probe.__wrapped__(torch.device("cpu")).triton is None
