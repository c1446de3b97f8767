"""The `jit` backend: what it keeps and refuses, and real compiling beside a caller that goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lib_accel.compile.accuracy import example_inputs
from lib_accel.compile.backends import jit
from lib_accel.compile.backends.jit import Jit, JitUnit
from lib_accel.compile.jobs import CompiledUnits, Job
from lib_accel.compile.session import Session
from lib_accel.compile.units import UnitModule, units_of
from lib_accel.errors import ArtifactRejected, CompileFailed
from lib_accel.model.specs import Spec
from lib_accel.runtime.engine import Engine
from lib_accel.runtime.status import Status
from lib_accel.store.store import ArtifactStore

from .. import tiny
from ..threads import one_thread  # noqa: F401  (a fixture)

# torch's own, at an import
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

CPU = torch.device("cpu")
UNITS = units_of(tiny.TINY)


# -- with a stand-in for the compiler


class StandIn:
    """Computes a unit as `JitUnit` does, without a compiler."""

    made = 0

    def __init__(self, unit: Spec, dtype: torch.dtype, device: torch.device):
        type(self).made += 1
        self._module = UnitModule(unit)

    def compute(self, inputs: list[Tensor]) -> Tensor:
        count = len(self._module.names)
        return self._module(inputs[:-count], inputs[-count:])


def make(backend: Jit, store: Path, units: tuple[Spec, ...] = UNITS) -> CompiledUnits | Job:
    return backend.make(tiny.target(units), ArtifactStore(store))


def job(backend: Jit, store: Path) -> Job:
    made = make(backend, store)
    assert isinstance(made, Job)
    return made


def test_units_are_kept_as_long_as_their_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(StandIn, "made", 0)
    monkeypatch.setattr(jit, "JitUnit", StandIn)
    backend = Jit()
    first = job(backend, tmp_path)
    units = first.result()
    assert units.keys() == set(UNITS)
    assert (first.compiled, StandIn.made) == (5, 5)
    assert make(backend, tmp_path) == units
    assert make(backend, tmp_path, UNITS[:2]) == {unit: units[unit] for unit in UNITS[:2]}
    assert StandIn.made == 5
    another = job(Jit(), tmp_path).result()
    assert StandIn.made == 10
    assert not set(another.values()) & set(units.values())


def test_two_jobs_for_the_same_units_compile_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(StandIn, "made", 0)
    monkeypatch.setattr(jit, "JitUnit", StandIn)
    backend = Jit()
    with jit.TRACING:  # so that neither begins before both are there
        jobs = [job(backend, tmp_path) for _ in range(2)]
    results = [each.result() for each in jobs]
    assert results[0] == results[1]
    assert StandIn.made == sum(each.compiled for each in jobs) == 5


def test_an_inaccurate_unit_is_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Wrong(StandIn):
        def compute(self, inputs: list[Tensor]) -> Tensor:
            return super().compute(inputs) * 1.001

    monkeypatch.setattr(jit, "JitUnit", Wrong)
    backend = Jit()
    with pytest.raises(ArtifactRejected, match=r"SpatialTransformer 64 x1 is inaccurate: relative"):
        job(backend, tmp_path).result()
    monkeypatch.setattr(jit, "JitUnit", StandIn)
    assert job(backend, tmp_path).result().keys() == set(UNITS)


def test_an_error_of_the_compiler_names_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("g++ is\nbroken\n\nSet TORCH_LOGS for more")

    monkeypatch.setattr(jit, "JitUnit", broken)
    expected = r"^SpatialTransformer 64 x1 does not compile: RuntimeError: g\+\+ is broken$"
    with pytest.raises(CompileFailed, match=expected):
        job(Jit(), tmp_path).result()


def test_a_cancelled_job_keeps_what_it_has_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun, go_on = threading.Event(), threading.Event()

    class Held(StandIn):
        def __init__(self, unit: Spec, dtype: torch.dtype, device: torch.device):
            super().__init__(unit, dtype, device)
            begun.set()
            go_on.wait(60)

    monkeypatch.setattr(jit, "JitUnit", Held)
    backend = Jit()
    held = job(backend, tmp_path)
    assert begun.wait(60)
    backend.cancel()
    go_on.set()
    with pytest.raises(CompileFailed, match="cancelled"):
        held.result()
    assert (held.cancelled, held.compiled) == (True, 1)
    assert make(backend, tmp_path, UNITS[2:3]).keys() == {UNITS[2]}  # type: ignore[union-attr]


def test_while_another_thread_traces_the_operators_compute_the_unit(
    monkeypatch: pytest.MonkeyPatch,
):
    refuses = False

    def without_compiler(graph: torch.fx.GraphModule, **_: object):
        def compiled(*inputs: Tensor) -> Tensor:
            if refuses:
                raise RuntimeError("another thread traces")
            return graph(*inputs)

        return compiled

    monkeypatch.setattr(torch, "compile", without_compiler)
    unit = JitUnit(UNITS[1], torch.float32, CPU)
    activations, weights = example_inputs(UNITS[1], (2, 6, 5, 3), torch.float32, CPU)
    expected = unit([*activations, *weights])
    assert torch.allclose(expected, UnitModule(UNITS[1])(activations, weights), atol=1e-5)
    refuses = True
    with pytest.raises(RuntimeError, match="another thread traces"):
        unit([*activations, *weights])
    with jit.TRACING:  # a thread that compiles holds it
        assert torch.equal(unit([*activations, *weights]), expected)
        with pytest.raises(RuntimeError, match="another thread traces"):
            unit.compute([*activations, *weights])


# -- with torch's compiler, on a torch without packaging


@dataclass(frozen=True)
class Compiled:
    """An engine served by jit, and what was seen while its units were compiled."""

    session: Session
    engine: Engine
    before: Status
    accelerated_before: int


def old_torch(store: Path, session: Session, *network: Any, **keywords: Any) -> Engine:
    return tiny.engine(store, *network, machine={"packaging": False}, session=session, **keywords)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiled]:
    session = Session()
    engine = old_torch(tmp_path_factory.mktemp("jit") / "store", session)
    with contextlib.closing(engine):
        engine.prepare()
        before = engine.status
        tiny.check(engine, tiny.inputs())
        accelerated = engine.counters.accelerated_calls
        assert engine.job is not None
        engine.job.result()
        assert engine.take_up()
        yield Compiled(session, engine, before, accelerated)


@pytest.mark.slow
def test_the_caller_goes_on_while_units_are_compiled(compiled: Compiled):
    assert (compiled.before.state, compiled.before.backend) == ("compiling", "jit")
    assert compiled.accelerated_before == 0
    status = compiled.engine.status
    assert (status.state, status.backend) == ("ready", "jit"), status.reason
    assert "2.6 or later" in str(status.reason)
    assert status.artifact is None
    assert compiled.engine.counters.compiles == len(UNITS)


@pytest.mark.slow
def test_other_sizes_are_right_and_compile_nothing(compiled: Compiled):
    engine, graphs = compiled.engine, counters["stats"]["unique_graphs"]
    calls = engine.counters.accelerated_calls
    tiny.check(engine, tiny.inputs())
    tiny.check(engine, tiny.inputs(batch=3, height=27, width=33, length=154))
    tiny.check(engine, tiny.inputs(batch=1))
    assert counters["stats"]["unique_graphs"] == graphs, "the caller waited for the compiler"
    assert engine.counters.accelerated_calls == calls + 3
    tiny.check(engine, tiny.inputs(batch=1, length=1))
    assert engine.counters.compiles == len(UNITS)


@pytest.mark.slow
def test_another_checkpoint_compiles_nothing(compiled: Compiled, tmp_path: Path):
    another = old_torch(tmp_path / "store", compiled.session, unet=tiny.donor(seed=5))
    with contextlib.closing(another):
        another.prepare()
        status = another.status
        assert (another.job, status.state, status.backend) == (None, "ready", "jit")
        tiny.check(another, tiny.inputs())


@pytest.mark.slow
def test_calls_go_on_while_another_model_is_compiled(compiled: Compiled, tmp_path: Path):
    """torch refuses compiled functions to every thread while one of them traces."""
    engine, given = compiled.engine, tiny.inputs()
    other = old_torch(tmp_path / "store", compiled.session, tiny.RELATIVE)
    with contextlib.closing(other):
        other.prepare()
        assert other.job is not None
        expected = engine.compute(*given)
        while not other.job.done:
            assert torch.allclose(engine.compute(*given), expected, atol=1e-4)
        assert other.take_up()
        assert other.status.state == "ready", other.status.reason
    assert engine.status.state == "ready", engine.status.reason
