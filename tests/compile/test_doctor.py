"""The doctor's findings, on this machine and on machines that lack something."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.compile.doctor import Finding, examine
from lib_accel.compile.machine import probe
from lib_accel.store.store import ArtifactStore

CPU = torch.device("cpu")

Examine = Callable[..., list[Finding]]


@pytest.fixture
def findings(tmp_path: Path) -> Examine:
    def call(**machine: Any) -> list[Finding]:
        machine = {"packaging": True, "compile": True, "cxx": "/usr/bin/g++", **machine}
        store = ArtifactStore(tmp_path / "store")
        return examine(CPU, torch.float32, store, replace(probe(CPU), **machine))

    return call


def find(found: list[Finding], words: str) -> Finding:
    """Return the one finding that begins with `words`."""
    (finding,) = (finding for finding in found if finding.what.startswith(words))
    return finding


def test_a_whole_machine_has_no_problem(findings: Examine):
    found = findings()
    assert {finding.level for finding in found} == {"ok"}
    assert find(found, "C++ compiler: /usr/bin/g++")
    assert find(found, "automatic choice: aoti")


def test_looking_makes_no_store(findings: Examine, tmp_path: Path):
    findings()
    assert not (tmp_path / "store").exists()


def test_a_missing_compiler_is_named_with_the_backends_that_need_it(findings: Examine):
    found = findings(cxx=None)
    missing = find(found, "no C++ compiler was found")
    assert missing.level == "note"
    assert missing.advice.startswith("install ")
    for backend in ("aoti", "jit"):
        refused = find(found, f"backend {backend} does not work here")
        assert missing.what in refused.advice
        assert missing.advice in refused.advice
    assert find(found, "nothing can be compiled here").level == "problem"


def test_everything_that_a_gpu_lacks_is_named_at_once(findings: Examine):
    found = findings(device_type="cuda", capability="8.6", cxx=None, triton=None, gpu_headers=None)
    for what in ("no C++ compiler was found", "Triton is not", "CUDA's headers were not found"):
        assert find(found, what).level == "note"
    assert find(found, "automatic choice: eager with CUDA graphs").level == "ok"


def test_a_gpu_that_has_everything_is_served_with_cuda_graphs(findings: Examine):
    found = findings(
        device_type="cuda", capability="8.6", triton="3", gpu_headers="", recordable=True
    )
    assert find(found, "Triton 3").level == "ok"
    assert find(found, "automatic choice: aoti with CUDA graphs")
    found = findings(
        device_type="cuda", capability="8.6", triton="3", gpu_headers="", recordable=False
    )
    assert find(found, "automatic choice: aoti").what == "automatic choice: aoti"


def test_an_old_torch_is_told_what_a_newer_one_gives(findings: Examine):
    found = findings(packaging=False, torch="2.1.2")
    assert find(found, "torch 2.1.2 has no AOTInductor packaging").level == "note"
    assert find(found, "automatic choice: jit")


def test_a_device_that_no_backend_serves_is_a_problem(findings: Examine):
    found = findings(device_type="mps")
    assert find(found, "backend eager does not work here").level == "note"
    assert find(found, "nothing can be compiled here").level == "problem"


def test_a_store_that_cannot_be_used_is_a_problem(findings: Examine, tmp_path: Path):
    (tmp_path / "store").touch()
    found = findings()
    problem = find(found, "the artifact store cannot be used")
    assert problem.level == "problem"
    refused = find(found, "backend aoti does not work here")
    assert refused.advice == "because the artifact store cannot be used", "said once"


def test_a_full_temporary_folder_is_a_problem(findings: Examine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 5 * 2**20}))
    what = find(findings(), f"only 5 MiB are free in {tempfile.gettempdir()}")
    assert what.level == "problem"
