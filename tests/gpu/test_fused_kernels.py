"""The backend `kernels` on the pretend card: compiled by NVRTC, loaded, launched and recorded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_accel.compile.accuracy import Verdict, example_inputs
from lib_accel.compile.backends.kernels import job
from lib_accel.compile.backends.kernels.backend import FusedKernels
from lib_accel.compile.machine import probe
from lib_accel.compile.target import Target
from lib_accel.compile.units import unit_key
from lib_accel.config import Config
from lib_accel.model.specs import (
    Output,
    ResBlock,
    SpatialTransformer,
    Spec,
    Upsample,
    VaeAttention,
    VaeBlock,
    VaeOutput,
)
from lib_accel.model.vae.network import DECODER, ENCODER, Half
from lib_accel.runtime.graphs import policy
from lib_accel.runtime.vae import VaeEngine
from lib_accel.store import ArtifactStore
from lib_accel.tools.bench.images import vae
from lib_accel.tools.laboratory.backends import Fused
from lib_accel.tools.laboratory.launches import LAUNCH, Counter

from .. import tiny

CARD = torch.device("cuda:0")
PASSED = Verdict((1e-3,), (1e-3,))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the kernels and store the units of the tiny UNet, as an engine does.

    They are not checked: kernels compute nothing here.
    """
    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "check_unit", lambda *_, **__: PASSED)
        engine = engine_of(folder, compile=True, blocking=True)
        engine.prepare()
    assert (engine.status.state, engine.status.backend) == ("ready", "kernels"), engine.status
    return folder


def engine_of(store: Path, dtype: torch.dtype = torch.float16, **options: object) -> tiny.Engine:
    network = tiny.donor(dtype=dtype).to(CARD)
    config = {"backend": "kernels", "store": store, "compile": False, **options}
    engine = tiny.Engine(network, Config(**config))  # type: ignore[arg-type]
    engine.prepare()
    return engine


def call(engine: tiny.Engine, count: int = 5) -> None:
    x, timesteps, context, _ = tiny.inputs()
    for _ in range(count):
        out = engine.compute(x.half().to(CARD), timesteps.to(CARD), context.half().to(CARD))
        assert out.shape == x.shape


def logged(run: Callable[[], object]) -> list[str]:
    """Return the log's lines of what `run` does."""
    log = Path(os.environ["PRETEND_LOG"])
    before = log.stat().st_size
    run()
    return log.read_text()[before:].splitlines()


def test_the_stored_kernels_serve_at_once_and_are_recorded(store: Path):
    engine = engine_of(store)
    assert (engine.status.state, engine.status.reason) == ("ready", None)
    call(engine)
    assert engine.counters.accelerated_calls == 5
    assert engine.graphs is not None
    assert engine.graphs.captures == 1
    lines = logged(lambda: call(engine, 1))
    assert not [line for line in lines if line.startswith("kernel ")], "a graph replays them"
    assert sum(line.startswith("graph ") for line in lines) == 1


def test_every_launch_is_on_the_stream_of_torch(store: Path):
    engine = engine_of(store, graphs=False)
    stream = torch.cuda.Stream(CARD)
    call(engine, 1)
    with torch.cuda.stream(stream):
        lines = logged(lambda: call(engine, 1))
    streams = [re.search(r"stream=(\S+)", line) for line in lines if LAUNCH.match(line)]
    ours = {int(found[1], 16) for found in streams if found}
    assert ours == {stream.cuda_stream}
    layers = [spec for _, spec in tiny.TINY.layers()]
    norms = sum(2 * isinstance(s, ResBlock) + isinstance(s, SpatialTransformer) for s in layers) + 1
    assert sum(line.startswith("kernel group_norm_apply") for line in lines) == norms


def test_a_model_that_is_switched_and_weights_that_move_are_followed(
    store: Path, monkeypatch: pytest.MonkeyPatch
):
    """As another checkpoint, and --medvram."""
    monkeypatch.setattr(policy, "LAUNCH_BOUND", 0.0)  # a busy machine must not decide
    engine = engine_of(store)
    call(engine)
    with torch.no_grad():
        next(engine.network.parameters()).mul_(2)  # as a LoRA that is merged
    call(engine, 1)
    assert engine.counters.binds == 2, "once without units, once with them"
    taken = [p.data for p in engine.network.parameters()]  # else they move back to the place
    engine.network.cpu()
    engine.network.to(CARD)
    call(engine)
    assert engine.counters.accelerated_calls == 11
    assert engine.graphs is not None
    assert engine.graphs.captures == 2
    del taken
    other = engine_of(store)
    call(other)
    assert other.graphs is not None
    assert other.graphs.captures == 1, other.graphs.refused


KINDS = "group_norm", "layer_norm", "geglu", "product", "add", "upsample", "copy", "cat"
LAUNCHES = {
    ResBlock(64, 64, 256): {"group_norm": 4, "convolution": 2, "add": 1},
    ResBlock(128, 64, 256, skip_channels=64): {
        "group_norm": 4,
        "convolution": 2,
        "product": 2,
        "add": 1,
    },
    SpatialTransformer(64, tiny.CONTEXT, 8, 1, linear=False): {
        "group_norm": 2,
        "layer_norm": 3,
        "product": 10,
        "geglu": 1,
        "add": 2,
    },
    Output(64, 4): {"group_norm": 2, "convolution": 1},
    Upsample(64, 64): {"upsample": 1, "convolution": 1},
    VaeBlock(64, 64): {"group_norm": 4, "convolution": 2, "add": 1},
    VaeBlock(64, 128): {"group_norm": 4, "convolution": 2, "product": 1, "add": 1},
    VaeAttention(64): {"group_norm": 2, "product": 4, "add": 1},
}


@pytest.mark.parametrize("unit", LAUNCHES, ids=unit_key)
def test_a_unit_launches_what_it_needs_and_copies_nothing(store: Path, unit: Spec):
    target = Target((unit,), torch.float16, CARD, probe(CARD))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "check_unit", lambda *_, **__: PASSED)
        made = FusedKernels().make(target, ArtifactStore(store))
        units = made.result() if isinstance(made, job.KernelJob) else made
    activations, weights = example_inputs(unit, (2, 6, 5, 7), torch.float16, CARD)
    lines = logged(lambda: units[unit]([*activations, *weights]))
    assert units[unit]([*activations, *weights]).is_contiguous(memory_format=torch.channels_last)
    launches = [line for line in lines if LAUNCH.match(line)]
    counted = {kind: sum(kind in line for line in launches) for kind in KINDS}
    expected = {name: n for name, n in LAUNCHES[unit].items() if name != "convolution"}
    assert {kind: n for kind, n in counted.items() if n} == expected, "\n".join(launches)


@pytest.mark.parametrize("kind", [DECODER, ENCODER])
def test_half_a_vae_is_served_and_copies_no_activation(kind: str, tmp_path: Path):
    half = Half.preset(kind, 64)
    network = vae.donor(
        {
            name: torch.nn.Parameter(torch.zeros(s, dtype=torch.half, device=CARD))
            for name, s in half.shapes().items()
        }
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "check_unit", lambda *_, **__: PASSED)
        config = Config(backend="kernels", store=tmp_path, blocking=True)
        engine = VaeEngine(network, config)
        engine.prepare()
    assert (engine.status.state, engine.status.backend) == ("ready", "kernels"), engine.status
    sizes = (1, 4, 16, 24) if kind == DECODER else (1, 3, 64, 72)
    x = torch.zeros(sizes, dtype=torch.half, device=CARD)
    engine.compute(x)
    lines = logged(lambda: engine.compute(x))
    assert engine.counters.accelerated_calls == 2
    counted = {
        name: sum(name in line for line in lines)
        for name in ("kernel group_norm_apply", "kernel upsample", "direct_copy")
    }
    norms = {VaeBlock: 2, VaeAttention: 1, VaeOutput: 1}
    assert counted == {
        "kernel group_norm_apply": sum(norms.get(type(spec), 0) for _, spec in half.layers),
        "kernel upsample": 3 if kind == DECODER else 0,
        "direct_copy": 1 if kind == DECODER else 4,  # what is given, and what is padded
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_other_dtypes_run(dtype: torch.dtype, tmp_path: Path):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "check_unit", lambda *_, **__: PASSED)
        engine = engine_of(tmp_path, dtype, compile=True, blocking=True, graphs=False)
    assert engine.status.backend == "kernels", engine.status
    x, timesteps, context, _ = tiny.inputs(height=24, width=8)
    given = x.to(CARD, dtype), timesteps.to(CARD), context.to(CARD, dtype)
    assert engine.compute(*given).shape == x.shape
    assert engine.counters.accelerated_calls == 1


def test_code_for_another_card_is_refused(store: Path, tmp_path: Path):
    """A store that was copied from there: its keys differ, so nothing of it is loaded."""
    target = Target.of_unet(tiny.TINY, torch.float16, CARD, probe(CARD))
    backend, kept = FusedKernels(), ArtifactStore(store)
    assert backend.kept_bytes(target, kept)
    other = replace(target, machine=replace(target.machine, capability="7.5"))
    assert backend.kept_bytes(other, kept) is None


def test_every_launch_is_counted_with_what_it_reads_and_writes(tmp_path: Path):
    """As `bench --model` does."""
    counter = Counter(Path(os.environ["PRETEND_LOG"]))
    network = tiny.donor(dtype=torch.float16).to(CARD)
    config = Config(store=tmp_path, graphs=False)
    engine = tiny.Engine(network, config, session=Fused(counter))
    engine.prepare()
    assert engine.status.backend == "kernels"
    call(engine, 2)

    def count() -> None:
        counter.launches.clear()
        with counter:
            call(engine, 1)

    lines = [line for line in logged(count) if LAUNCH.match(line)]
    ours = [each for each in counter.launches if "kernel " in each.name]
    assert len(ours) == sum(line.startswith("kernel ") for line in lines)
    assert all(each.bytes for each in ours if "embedding" not in each.name)
    assert not [each for each in counter.launches if each.kind == "other"]
