"""Compiled code for a card: what is in it, and that it is loaded, called, recorded and refused."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lib_accel.compile.accuracy import example_inputs
from lib_accel.compile.backends.aoti.backend import Aoti
from lib_accel.compile.backends.aoti.load import ARCHIVE, misfit
from lib_accel.compile.backends.aoti.worker_environment import made_with
from lib_accel.compile.backends.aoti.worker_process import Results, Worker
from lib_accel.compile.machine import probe
from lib_accel.compile.target import Target
from lib_accel.compile.units import unit_key, units_of
from lib_accel.config import Config
from lib_accel.model.specs import Output, ResBlock, SpatialTransformer, Spec
from lib_accel.runtime.graphs.policy import PAYS_AFTER
from lib_accel.store import ArtifactStore
from lib_accel.tools.laboratory.backends import Replaying, generated_code
from lib_accel.tools.laboratory.launches import LAUNCH, Counter

from .. import tiny

CARD = torch.device("cuda:0")
PATIENCE_S = 600
PASSED = {"compiled": [1e-3] * 4, "eager": [1e-3] * 4}
"""Stands for the verdict of the accuracy check, which kernels that compute nothing cannot pass."""


@dataclass(frozen=True)
class Built:
    target: Target
    files: dict[Spec, dict[str, Path]]
    store: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Compile the units of the tiny UNet in float16, as a job does, and store them."""
    folder = tmp_path_factory.mktemp("compiled")
    units = units_of(tiny.TINY)
    target = Target(units, torch.float16, CARD, probe(CARD))
    files = {}
    results: Results = queue.SimpleQueue()
    (folder / "work").mkdir()
    worker = Worker(folder / "work", results, 2, target.machine)
    store = ArtifactStore(folder / "store")
    try:
        for unit in units:
            worker.give(unit, target)
            answer: dict[str, Any] = {}
            while answer.get("stage") != "check":
                _, given = results.get(timeout=PATIENCE_S)
                assert given is not None, worker.log_tail()
                assert "error" not in given, given
                answer = given
            while not {"error", "ok"} & answer.keys():  # how the check ends means nothing here
                answer = results.get(timeout=PATIENCE_S)[1] or {"error": "the worker ended"}
            kept = folder / f"unit{len(files)}"
            files[unit] = {
                name: Path(shutil.copy(file, kept.mkdir(exist_ok=True) or kept))
                for name, file in worker.files().items()
            }
            made = made_with(target.machine)
            store.put(target.recipe(unit), files[unit], PASSED, made_with=made)
            worker.take_back()
    finally:
        worker.kill()
    return Built(target, files, store.root)


def engine_of(built: Built, **options: Any) -> tiny.Engine:
    network = tiny.donor(dtype=torch.float16).to(CARD)
    return tiny.Engine(network, Config(store=built.store, compile=False, **options))


def call(engine: tiny.Engine, count: int = 5) -> None:
    x, timesteps, context, _ = tiny.inputs()
    for _ in range(count):
        out = engine.compute(x.half().to(CARD), timesteps.to(CARD), context.half().to(CARD))
        assert out.shape == x.shape


def unpacked(files: dict[str, Path], folder: Path) -> list[Path]:
    for file in files.values():
        if file.name == ARCHIVE:
            shutil.unpack_archive(file, folder, "zip")
        else:
            shutil.copy(file, folder)
    return [file for file in folder.rglob("*") if file.is_file()]


def test_the_host_code_runs_on_every_processor(built: Built, tmp_path: Path):
    """An instruction of AVX-512 would kill a WebUI on another processor."""
    unit = built.target.units[0]
    libraries = [f for f in unpacked(built.files[unit], tmp_path) if f.suffix == ".so"]
    assert libraries
    for library in libraries:
        command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
        code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert len(code) > 10_000
        assert "%ymm" not in code
        assert "%zmm" not in code


def test_the_gpu_code_fits_the_card_and_no_other_one(built: Built, tmp_path: Path):
    unit = built.target.units[0]
    assert any(f.suffix == ".cubin" for f in unpacked(built.files[unit], tmp_path))
    here = built.target.machine
    assert misfit(tmp_path, here, "x86-64-v2") is None
    assert misfit(tmp_path, replace(here, capability="8.9"), "x86-64-v2") is None
    for other in ("8.0", "7.5", "9.0", "12.0"):
        assert "expected" in str(misfit(tmp_path, replace(here, capability=other), "x86-64-v2"))


def test_compiled_code_is_loaded_called_and_recorded(built: Built):
    engine = engine_of(built)
    engine.prepare()
    assert (engine.status.state, engine.status.reason) == ("ready", None)
    call(engine)
    assert engine.counters.accelerated_calls == 5
    assert engine.graphs is not None
    assert engine.graphs.captures == 1
    assert engine.memory.give_up()
    assert engine.graphs.bytes == 0


def test_an_import_needs_neither_triton_nor_a_compiler_nor_the_same_card(built: Built):
    """Machines without them are those that imports are for."""
    machine = replace(
        built.target.machine,
        triton=None,
        cxx=None,
        gpu_headers=None,
        device_name="Another card with this compute capability",
    )
    target = replace(built.target, machine=machine)
    backend, store = Aoti(), ArtifactStore(built.store)
    assert backend.why_not(target, store, Config(store=built.store)) is None
    assert len(backend.make(target, store)) == len(target.units)  # type: ignore[arg-type]


def test_weights_that_move_at_every_image_are_bound_again_and_recorded_no_more(built: Built):
    """As under --medvram."""
    engine = engine_of(built)
    engine.prepare()
    taken = []
    for _ in range(4):
        taken += [p.data for p in engine.network.parameters()]  # else they move back to the place
        engine.network.cpu()
        engine.network.to(CARD)
        call(engine)
    assert engine.graphs is not None
    assert engine.graphs.captures == 2, "after two that lived for an image only, none is made"
    call(engine, PAYS_AFTER)
    assert engine.graphs.captures == 3, "now the weights have stayed"


def test_without_cudnn_compiled_code_stops_serving(built: Built):
    engine = engine_of(built)
    engine.prepare()
    with torch.backends.cudnn.flags(enabled=False):
        call(engine, 1)
    assert engine.counters.accelerated_calls == 0
    assert "cuDNN is switched off" in str(engine.status.reason)


def test_the_time_embedding_and_its_projections_are_a_few_kernels(built: Built):
    """One for each layer of the perceptron, and one for all projections to the same width."""
    if not (log := os.environ.get("PRETEND_LOG")):
        pytest.skip("PRETEND_LOG is not set")
    unit = tiny.TINY.embedding
    units = Aoti().make(built.target, ArtifactStore(built.store))
    activations, weights = example_inputs(unit, (2, 1, 1, 1), torch.float16, CARD)
    before = Path(log).stat().st_size
    out = units[unit]([*activations, *weights])  # type: ignore[index]
    assert out.numel() == 2 * (unit.emb_channels + sum(unit.widths))
    lines = Path(log).read_text()[before:].splitlines()  # also of modules that are loaded
    assert [line.split()[0] for line in lines].count("kernel") == 3


OWN_KERNELS = {
    ResBlock(64, 64, 256): 5,
    ResBlock(128, 64, 256, skip_channels=64): 5,
    SpatialTransformer(64, tiny.CONTEXT, 8, 1, linear=False): 8,
    Output(64, 4): 3,
}
"""Two for each GroupNorm (statistics, and applying them); in a transformer one for each LayerNorm,
GEGLU and the addition after it; one at the end that adds."""


@pytest.mark.parametrize("unit", OWN_KERNELS, ids=unit_key)
def test_a_unit_has_no_kernels_but_those_it_needs(built: Built, unit: Spec):
    """A copy into another layout, or a tensor that is concatenated, would be one more."""
    if not (log := os.environ.get("PRETEND_LOG")):
        pytest.skip("PRETEND_LOG is not set")
    units = Aoti().make(built.target, ArtifactStore(built.store))
    activations, weights = example_inputs(unit, (2, 6, 5, 7), torch.float16, CARD)
    before = Path(log).stat().st_size
    out = units[unit]([*activations, *weights])  # type: ignore[index]
    assert out.is_contiguous(memory_format=torch.channels_last)
    lines = Path(log).read_text()[before:].splitlines()
    own = [line for line in lines if line.startswith("kernel triton_")]
    assert len(own) == OWN_KERNELS[unit], "\n".join(own)


@pytest.mark.filterwarnings("ignore")  # of torch's exporter, which workers run elsewhere
def test_the_statistics_of_two_tensors_read_their_numbers_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Inductor takes those of a `cat` for a reduction with gaps, which is many times slower."""
    from torch._inductor.ir import Reduction
    from torch._inductor.runtime.hints import ReductionHint

    hints: list[ReductionHint] = []
    choose = Reduction.num_splits

    def note(*given: Any, **named: Any) -> Any:
        chosen = choose(*given, **named)
        hints.append(chosen[0])
        return chosen

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(Reduction, "num_splits", staticmethod(note))
    monkeypatch.setattr(F, "conv2d", torch.conv2d)  # units have convolutions
    generated_code(ResBlock(128, 64, 256, skip_channels=64), torch.float16)
    assert hints[0] == ReductionHint.INNER


def test_the_driver_logs_the_kernels_of_compiled_code(built: Built):
    if not (log := os.environ.get("PRETEND_LOG")):
        pytest.skip("PRETEND_LOG is not set")
    engine = engine_of(built, graphs=False)
    engine.prepare()
    before = Path(log).stat().st_size
    call(engine, 1)
    lines = Path(log).read_text()[before:].splitlines()
    assert sum(line.startswith("kernel triton_") for line in lines) > 20
    assert sum(line.startswith("convolution ") for line in lines) > 5


@pytest.mark.filterwarnings("ignore")  # of torch's exporter, which workers run elsewhere
def test_the_count_of_generated_code_is_what_the_driver_logs(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The bench counts by replaying code that no C++ compiler has seen (bench --model)."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    log = Path(os.environ["PRETEND_LOG"])
    counter = Counter(log)
    network = tiny.donor(dtype=torch.float16).to(CARD)
    config = Config(store=tmp_path, graphs=False)
    replaying = tiny.Engine(network, config, session=Replaying(counter))
    with monkeypatch.context() as compiling:
        compiling.setattr(F, "conv2d", torch.conv2d)  # units have convolutions
        replaying.prepare()
    with counter:
        call(replaying, 1)
        counter.launches.clear()
        call(replaying, 1)
    assert replaying.status.backend == "aoti"
    engine = engine_of(built, graphs=False)
    engine.prepare()
    call(engine, 1)
    before = log.stat().st_size
    call(engine, 1)
    logged = [line for line in log.read_text()[before:].splitlines() if LAUNCH.match(line)]
    assert len(counter.launches) == len(logged)
    generated = [n for n in (launch.name for launch in counter.launches) if "triton" in n]
    assert sorted(generated) == sorted(line.split()[1] for line in logged if "triton" in line)
    assert sum(launch.name == "convolution" for launch in counter.launches) == sum(
        line.startswith("convolution ") for line in logged
    )
