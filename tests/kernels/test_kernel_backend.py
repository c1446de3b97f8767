"""The backend `kernels`: when it serves, what it keeps, and what it refuses.

The operations are torch's, on the CPU, in the place of code from NVRTC on a card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.compile import session as session_module
from lib_accel.compile.backends.kernels import backend, job, nvrtc
from lib_accel.compile.backends.kernels.backend import FusedKernels, recipes_of
from lib_accel.compile.target import Target
from lib_accel.compile.units import units_of
from lib_accel.config import Config
from lib_accel.errors import ArtifactRejected, BackendUnavailable, CompileFailed, NoRoom
from lib_accel.model.parts import cpu_operators
from lib_accel.store import ArtifactStore

from .. import tiny
from ..threads import one_thread  # noqa: F401  (a fixture)
from .reference import TorchKernels


class Compiler:
    """Stands for NVRTC and the driver: counts what is compiled, and can give other operations."""

    def __init__(self) -> None:
        self.compiled = 0
        self.kernels: Any = TorchKernels()

    def compile(self, arch: str, dtype: torch.dtype) -> bytes:
        self.compiled += 1
        return f"{arch} {dtype}".encode()

    def load(self, code: bytes, device: torch.device, dtype: torch.dtype) -> Any:
        if code != f"sm_86 {dtype}".encode():
            raise ArtifactRejected("the driver refuses the code")
        return self.kernels


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(backend, "_cannot_run", lambda target: None)
    # a card convolves what is doubled as we do; a CPU has a way that rounds less
    monkeypatch.setattr(cpu_operators, "doubles_faster", lambda *_: False)
    monkeypatch.setattr(nvrtc, "architecture", lambda device: "sm_86")
    monkeypatch.setattr(nvrtc, "version", lambda: "12.8")
    monkeypatch.setattr(nvrtc, "compile_kernels", made.compile)
    for module in (backend, job):
        monkeypatch.setattr(module, "load_kernels", made.load)
    return made


def build(store: ArtifactStore, target: Target | None = None) -> Any:
    """Return what a job of a new backend makes, or what that has at once."""
    made = FusedKernels().make(target or tiny.target(), store)
    return made.result() if isinstance(made, job.KernelJob) else made


def test_units_are_compiled_once_checked_and_kept(compiler: Compiler, tmp_path: Path):
    store, target = ArtifactStore(tmp_path), tiny.target()
    assert FusedKernels().kept_bytes(target, store) is None
    made = FusedKernels().make(target, store)
    assert isinstance(made, job.KernelJob)
    assert set(made.result()) == set(target.units)
    assert (made.compiled, made.progress().fraction) == (len(target.units), 1.0)
    assert FusedKernels().kept_bytes(target, store)
    for key, (_, recipe) in recipes_of(target).items():
        artifact = store.get(key)
        assert artifact
        assert artifact.recipe == recipe
        assert recipe["backend"] == "kernels"
        assert artifact.verdict
        assert artifact.verdict["compiled"]
        assert artifact.manifest["made_with"] == {"nvrtc": "12.8"}
        assert key not in target.keys.values(), "aoti has others"
    assert set(build(store)) == set(target.units)
    assert compiler.compiled == 1


def test_units_that_another_model_has_are_not_checked_again(compiler: Compiler, tmp_path: Path):
    store, made = ArtifactStore(tmp_path), FusedKernels()
    jobs = [made.make(tiny.target(units_of(a)), store) for a in (tiny.TINY, tiny.WITH_Y)]
    first, second = jobs
    assert isinstance(first, job.KernelJob)
    first.result()
    assert isinstance(second, job.KernelJob)
    second.result()
    third = made.make(tiny.target(units_of(tiny.RELATIVE)), store)
    assert isinstance(third, job.KernelJob)
    third.result()
    assert third.compiled == 1, "its transformer"
    assert made.make(tiny.target(), store), "at once"


def test_a_store_that_keeps_nothing_costs_the_next_start_alone(compiler: Compiler, tmp_path: Path):
    store, target = ArtifactStore(tmp_path, readonly=True), tiny.target()
    made = FusedKernels()
    assert made.why_not(target, store, Config(store=tmp_path)) is None
    first = made.make(target, store)
    assert isinstance(first, job.KernelJob)
    first.result()
    assert made.make(target, store) == first.result()
    assert not list(tmp_path.iterdir())


def test_code_that_came_unchecked_is_checked_before_it_serves(compiler: Compiler, tmp_path: Path):
    """As `prebuild --for cuda:sm_86 --backend kernels` makes it; NVRTC may be missing here."""
    store, target = ArtifactStore(tmp_path), tiny.target()
    recipes, code = recipes_of(target), f"sm_86 {target.dtype}".encode()
    for key in recipes:
        job.keep(store, code, recipes, key, None, target.name, "built without a card")
    made = FusedKernels().make(target, store)
    assert isinstance(made, job.KernelJob), "nothing serves at once"
    assert set(made.result()) == set(target.units)
    assert (made.compiled, compiler.compiled) == (0, 0)
    for key in recipes:
        artifact = store.get(key)
        assert artifact is not None
        assert artifact.verdict is not None
        assert artifact.manifest["origin"] == "built without a card"
    assert not isinstance(FusedKernels().make(target, store), job.KernelJob), "it is known now"


@pytest.mark.parametrize("bytes_", [b"", b"of another card"], ids=["empty", "another"])
def test_code_that_does_not_load_is_discarded_and_made_again(
    bytes_: bytes, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The file is what its manifest says, so the store finds nothing wrong with it."""
    store, target = ArtifactStore(tmp_path / "store"), tiny.target()
    with monkeypatch.context() as patched:
        patched.setattr(nvrtc, "compile_kernels", lambda *_: bytes_)
        patched.setattr(job, "load_kernels", lambda *_: compiler.kernels)
        build(store)
    with pytest.raises(ArtifactRejected, match="does not load: the driver refuses the code") as e:
        build(store)
    assert e.value.key in recipes_of(target)
    monkeypatch.setattr(session_module, "BACKENDS", (FusedKernels, session_module.Eager))
    engine = tiny.engine(tmp_path / "store", blocking=True)
    engine.prepare()
    assert (engine.status.state, engine.status.backend) == ("ready", "kernels")
    assert "the driver refuses the code" not in str(engine.status.reason)
    tiny.check(engine, tiny.inputs())


class Wrong(TorchKernels):
    """A norm with another epsilon."""

    def group_norm(self, x: Tensor, weight: Tensor, bias: Tensor, *_: Any, **more: Any) -> Tensor:
        return super().group_norm(x, weight, bias, 32, 1e-2, **more)


class Failing(TorchKernels):
    """Operations that fail as `error`."""

    def __init__(self, error: Exception):
        self.error = error

    def geglu(self, *_: Any, **__: Any) -> Tensor:
        raise self.error


FAILURES: dict[str, tuple[TorchKernels, type[Exception], str]] = {
    "inaccurate": (
        Wrong(),
        ArtifactRejected,
        r"ResBlock 64 -> 64 is inaccurate with the fused kernels: relative error .* allowed",
    ),
    "a launch that fails": (
        Failing(RuntimeError("CUDA error: no\nmore")),
        CompileFailed,
        "SpatialTransformer 64 x1 does not run with the fused kernels: CUDA error: no$",
    ),
    "no video memory": (
        Failing(torch.cuda.OutOfMemoryError("no")),
        NoRoom,
        "no video memory is left to check SpatialTransformer 64 x1: no",
    ),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_unit_that_fails_its_check_ends_the_job_and_the_clean_unet_serves(
    failure: tuple[TorchKernels, type[Exception], str],
    compiler: Compiler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    compiler.kernels, kind, words = failure
    with pytest.raises(kind, match=words):
        build(ArtifactStore(tmp_path))
    monkeypatch.setattr(session_module, "BACKENDS", (FusedKernels, session_module.Eager))
    engine = tiny.engine(tmp_path, blocking=True)
    engine.prepare()
    assert engine.status.state == "fallback"
    assert f"kernels: {words.partition('.*')[0].rstrip('$')}" in str(engine.status.reason)
    tiny.check(engine, tiny.inputs())


def test_without_a_compiler_the_next_backend_serves_with_the_reason(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing(*_: Any) -> str:
        raise BackendUnavailable("NVRTC is missing")

    store, target = ArtifactStore(tmp_path), tiny.target()
    with monkeypatch.context() as patched:
        patched.setattr(nvrtc, "architecture", missing)
        assert FusedKernels().why_not(target, store, Config()) == "NVRTC is missing"
        with pytest.raises(CompileFailed, match="NVRTC is missing"):
            build(store)
    off = Config(compile=False)
    assert FusedKernels().why_not(target, store, off) == (
        "5 of 5 units are missing and compiling is switched off: import them "
        "(python3 -m lib_accel store import) or allow compiling"
    )
    build(store)
    monkeypatch.setattr(nvrtc, "architecture", missing)
    for config in (Config(), off):
        assert FusedKernels().why_not(target, store, config) is None, "all are stored"


CARDS: dict[str, tuple[dict[str, Any], str]] = {
    "a processor": (
        {"device_type": "cpu"},
        "the fused kernels run on NVIDIA's cards alone, not on A card",
    ),
    "ZLUDA": (
        {"device_name": "Radeon [ZLUDA]"},
        "Radeon [ZLUDA]: ZLUDA does not load code that is made for NVIDIA's cards",
    ),
    "float64": (
        {"dtype": torch.float64},
        "the fused kernels compute float16, bfloat16 and float32, not float64",
    ),
    "bfloat16 on Turing": (
        {"capability": "7.5", "dtype": torch.bfloat16},
        "A card has compute capability 7.5; the fused kernels compute bfloat16 from 8.0 on, "
        "float16 also on this card",
    ),
}


@pytest.mark.parametrize(("machine", "words"), CARDS.values(), ids=CARDS)
def test_what_cannot_run_the_kernels_is_told_so(
    machine: dict[str, Any], words: str, tmp_path: Path
):
    card = {"device_type": "cuda", "device_name": "A card", "capability": "8.6"}
    target = tiny.target(**{**card, **machine})
    assert FusedKernels().why_not(target, ArtifactStore(tmp_path), Config()) == words


def test_cards_of_amd_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.version, "hip", "6.0")
    target = tiny.target(device_type="cuda", device_name="Radeon", capability="9.0")
    assert FusedKernels().why_not(target, ArtifactStore(tmp_path), Config()) == (
        "Radeon is an AMD card; the fused kernels are not made for these yet"
    )


def test_where_nothing_compiles_auto_takes_the_kernels(compiler: Compiler, tmp_path: Path):
    """As with torch 2.1 on Windows. The clean UNet computes until they are there."""
    engine = tiny.engine(tmp_path, machine={"packaging": False, "compile": False})
    given = tiny.inputs()
    engine.prepare()
    assert engine.status.state == "compiling"
    before = engine.compute(*given)
    assert engine.job
    engine.job.wait()
    assert engine.take_up()
    assert (engine.status.state, engine.status.backend) == ("ready", "kernels")
    assert "aoti: torch " in str(engine.status.reason)
    assert tiny.error(tiny.served(engine, given), before) < 1e-5
    tiny.check(engine, given)
    weight = dict(engine.network.named_parameters())["middle_block.0.in_layers.2.weight"]
    with torch.no_grad():
        weight.mul_(2)  # as a LoRA that is merged
    tiny.check(engine, given)
