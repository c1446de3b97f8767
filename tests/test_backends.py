"""Which backend serves, what is said of the better ones, and artifacts that must not serve."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from lib_accel.compile import toolchain
from lib_accel.compile.machine import probe
from lib_accel.compile.session import Session
from lib_accel.compile.toolchain import find_cxx
from lib_accel.compile.units import units_of
from lib_accel.config import Config
from lib_accel.store.store import ArtifactStore

from . import tiny
from .threads import one_thread  # noqa: F401  (a fixture)

OUTPUT = units_of(tiny.TINY)[-1]


def choice(
    store: Path, backend: str = "auto", compile: bool = True, readonly: bool = False, **machine: Any
):
    """(backend, what is said of the better ones) on a machine that differs from this one, or from this one with a new torch."""
    chosen = Session().choose(
        tiny.target(**{"packaging": True, **machine}),
        ArtifactStore(store, readonly=readonly),
        Config(backend, store, compile=compile),
    )
    return chosen.backend.name, chosen.reason


# -- choosing


def test_the_best_serves_without_a_word(tmp_path: Path):
    assert choice(tmp_path) == ("aoti", None)
    assert choice(tmp_path, "aoti") == ("aoti", None)
    assert choice(tmp_path, "eager") == ("eager", None)


def test_old_torch_falls_to_jit(tmp_path: Path):
    name, reason = choice(tmp_path, packaging=False, torch="2.1.2")
    assert name == "jit"
    assert (
        reason
        == "aoti: torch 2.1.2 cannot make AOTInductor packages with dynamic shapes; that needs torch 2.6 or later"
    )


def test_no_compiler_falls_to_eager_with_both_reasons(tmp_path: Path):
    name, reason = choice(tmp_path, cxx=None)
    assert name == "eager"
    assert "aoti: no C++ compiler was found; install" in str(reason)
    assert "jit: no C++ compiler was found, which torch.compile needs on a CPU" in str(reason)


def test_old_torch_on_a_new_python(tmp_path: Path):
    machine = replace(tiny.target().machine, packaging=False, compile=False, torch="2.1.2")
    chosen = Session().choose(
        replace(tiny.target(), machine=machine), ArtifactStore(tmp_path), Config(store=tmp_path)
    )
    assert chosen.backend.name == "eager"
    assert "jit: torch.compile does not work with torch 2.1.2 on Python 3." in str(chosen.reason)


def test_an_artifact_at_hand_needs_no_compiler(tiny_store: Path, tmp_path: Path):
    assert choice(tiny_store, cxx=None) == ("aoti", None)
    assert choice(tiny_store, compile=False) == ("aoti", None)
    assert choice(tiny_store, readonly=True) == ("aoti", None)
    assert "the store" in str(choice(tmp_path, "aoti", readonly=True)[1])


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (
            {"device_type": "mps"},
            ("aoti: AOTInductor is not tried on mps", "jit: torch.compile is not tried on mps"),
        ),
        (
            {"device_type": "cuda", "triton": None},
            (
                "aoti: Triton is not installed, which compiling for a GPU needs",
                "jit: Triton is not",
            ),
        ),
    ],
    ids=["mps", "no triton"],
)
def test_other_devices(tmp_path: Path, machine: dict[str, Any], words: tuple[str, ...]):
    name, reason = choice(tmp_path, **machine)
    assert name == "eager"
    assert all(w in str(reason) for w in words)


def test_no_gpu_headers(tmp_path: Path):
    """jit needs none: its host code is Python."""
    name, reason = choice(tmp_path, device_type="cuda", triton="3.2", gpu_headers=None)
    assert name == "jit"
    assert "aoti: CUDA's headers were not found; install the CUDA toolkit" in str(reason)
    assert choice(tmp_path, device_type="cuda", triton="3.2", gpu_headers="/triton") == (
        "aoti",
        None,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="paths are quoted there")
def test_a_folder_with_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/my own")
    name, reason = choice(tmp_path)
    assert name == "eager"
    assert "aoti: /tmp/my own has a space in its name" in str(reason)


def test_gpu_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A toolkit's, else those that Triton brings."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain, "TOOLKIT", tmp_path / "toolkit")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    package = tmp_path / "triton"
    package.mkdir()
    (package / "__init__.py").touch()
    assert toolchain.find_gpu_headers() is None
    headers = package / "backends" / "nvidia" / "include"
    headers.mkdir(parents=True)
    (headers / "cuda_runtime.h").touch()
    assert toolchain.find_gpu_headers() == str(headers.parent)
    (tmp_path / "toolkit").mkdir()
    assert toolchain.find_gpu_headers() == ""


def test_a_failed_backend_is_passed_over(tmp_path: Path):
    chosen = Session().choose(
        tiny.target(), ArtifactStore(tmp_path), Config(store=tmp_path), {"aoti": "it broke"}
    )
    assert (chosen.backend.name, chosen.reason) == ("jit", "aoti: it broke")


def test_no_compiler_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert find_cxx() is None
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    assert find_cxx() is None


def test_without_a_compiler_the_clean_unet_answers(tmp_path: Path):
    engine = tiny.engine(tmp_path / "store", machine={"cxx": None, "packaging": True})
    engine.prepare()
    status = engine.status
    assert (status.state, status.backend, engine.job) == ("eager", "eager", None)
    assert str(status.reason).count("no C++ compiler was found") == 2
    tiny.check(engine, tiny.inputs())


def test_a_triton_that_does_not_import_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As triton-windows without the libraries it needs."""
    (tmp_path / "triton.py").write_text(
        "raise ImportError('DLL load failed while importing libtriton')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    probe.cache_clear()
    try:
        assert probe(torch.device("cpu")).triton is None
    finally:
        probe.cache_clear()


# -- jit


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning"
)  # torch's own, at an import of its own
def test_jit_compiles_in_a_thread_and_is_right(tmp_path: Path):
    """Old torch, taken away here: `torch.compile`, beside the caller."""
    session = Session()
    engine = tiny.engine(tmp_path / "store", machine={"packaging": False}, session=session)
    given = tiny.inputs()
    with contextlib.closing(engine):
        engine.prepare()
        assert engine.job is not None
        assert (engine.status.state, engine.status.backend) == ("compiling", "jit")
        tiny.check(engine, given)
        assert engine.counters.accelerated_calls == 0
        assert engine.job.wait(300)
        assert engine.take_up()
        assert (engine.status.state, engine.status.backend) == ("ready", "jit"), (
            engine.status.reason
        )
        assert "2.6 or later" in str(engine.status.reason)
        assert engine.status.artifact is None
        compiled = counters["stats"]["unique_graphs"]
        for size in ({}, {"height": 27, "width": 33, "batch": 3, "length": 154}, {"batch": 1}):
            tiny.check(engine, tiny.inputs(**size))
        assert counters["stats"]["unique_graphs"] == compiled, "the caller waited for the compiler"
        assert engine.counters.accelerated_calls == 3
        tiny.check(engine, tiny.inputs(batch=1, length=1))
        assert engine.counters.compiles == len(engine.target.units)
    another = tiny.engine(
        tmp_path / "store", unet=tiny.donor(seed=5), machine={"packaging": False}, session=session
    )
    with contextlib.closing(another):
        another.prepare()
        assert (another.job, another.status.state, another.status.backend) == (
            None,
            "ready",
            "jit",
        ), "compiled anew for other weights"
        tiny.check(another, given)
        other = tiny.engine(
            tmp_path / "store", tiny.RELATIVE, machine={"packaging": False}, session=session
        )
        with contextlib.closing(
            other
        ):  # torch refuses compiled functions to everybody while one thread traces
            other.prepare()
            assert other.job is not None
            expected = another(*given)
            while not other.job.done:
                assert torch.allclose(another(*given), expected, atol=1e-4)
            assert other.take_up()
            assert other.status.state == "ready", other.status.reason
        assert another.status.state == "ready", another.status.reason
