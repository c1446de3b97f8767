"""One compiled artifact, and everything that may change around it without another one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.store.store import ArtifactStore

from . import tiny
from .threads import one_thread  # noqa: F401  (a fixture)
from .tiny import INPAINTING, RELATIVE, Built, addresses, ready, served

# -- the artifact


def test_blocking_waits_for_the_artifact(built: Built):
    status = built.status
    assert (status.state, status.backend, status.reason, status.progress) == (
        "ready",
        "aoti",
        None,
        None,
    )
    assert status.artifact is not None


def test_progress_grows_with_the_units(built: Built):
    assert built.fractions == sorted(built.fractions)
    assert built.fractions[0] < 0.5
    assert len(set(built.fractions)) > 10, "it moves within a unit too"


def test_the_artifacts_are_small_and_keep_their_verdicts(tiny_store: Path):
    store = ArtifactStore(tiny_store)
    artifacts = [store.get(key) for key in tiny.target().keys.values()]
    assert len(artifacts) == len(store.list()) == 5
    for artifact in artifacts:
        assert artifact is not None
        assert artifact.bytes <= 20 * tiny.MIB / 17  # SD1 has 17 units, SDXL 16
        checked = artifact.verdict
        assert checked is not None
        assert max(checked["compiled"]) <= 1.25 * max(checked["eager"]) < 1e-5
        assert checked["seconds"] > 0


# -- any input


@pytest.mark.parametrize(
    "size",
    [
        {"height": 8, "width": 8},
        {"height": 27, "width": 33},
        {"height": 64, "width": 9},
        {"batch": 1},
        {"batch": 3},
        {"length": 1},
        {"length": 154},
        {"batch": 5, "height": 31, "width": 16, "length": 231},
    ],
    ids=str,
)
def test_any_size(tiny_store: Path, size: dict[str, int]):
    engine = ready(tiny_store)
    tiny.check(engine, tiny.inputs(**size))
    assert engine.counters.accelerated_calls == 1


def test_a_relative_with_the_same_units_shares_the_artifact(tiny_store: Path):
    engine = ready(tiny_store, INPAINTING)
    assert engine.target.key == tiny.target().key
    tiny.check(engine, tiny.inputs(INPAINTING))
    assert (engine.counters.compiles, engine.counters.accelerated_calls) == (0, 1)


def test_half_precision_images_from_full_precision_weights(tiny_store: Path):
    engine = ready(tiny_store)
    x, timesteps, context, _ = tiny.inputs()
    out = served(engine, (x.half(), timesteps, context.half(), None))
    assert out.dtype == torch.float16
    assert torch.equal(
        out, served(engine, (x.half().float(), timesteps, context.half().float(), None)).half()
    )


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), torch.enable_grad]
)
def test_in_any_mode_of_the_host(
    tiny_store: Path, mode: Callable[[], contextlib.AbstractContextManager[Any]]
):
    engine = ready(tiny_store)
    engine.network.requires_grad_(True)
    expected = served(engine, tiny.inputs())
    with mode():
        out = served(engine, tiny.inputs())
    assert torch.equal(out, expected)
    assert not out.requires_grad


def test_one_timestep_or_prompt_for_a_whole_batch(tiny_store: Path):
    """The host's layers broadcast them; compiled code would read past their end."""
    engine = ready(tiny_store)
    x, timesteps, context, _ = tiny.inputs(batch=3)
    for t, c in ((timesteps[:1], context), (timesteps, context[:1]), (timesteps[:1], context[:1])):
        expected = engine.compute(x, t.expand(3), c.expand(3, -1, -1))
        assert tiny.error(engine.compute(x, t, c), expected.double()) < 2e-6


def test_wrong_input_is_torchs_error_and_not_the_codes_fault(tiny_store: Path):
    engine = ready(tiny_store)
    x, timesteps, context, _ = given = tiny.inputs()
    for wrong in (
        (x[:, :3], timesteps, context),
        (x, timesteps, context[..., :8]),
        (x, timesteps, torch.cat([context, context[:1]])),
    ):
        with pytest.raises(RuntimeError):
            engine.compute(*wrong)
    assert engine.status.state == "ready"
    served(engine, given)


# -- coming and going


def test_never_waiting_and_taking_over(own_store: Path):
    """The relative needs one unit of its own; the store has the other four."""
    engine, given = tiny.engine(own_store, RELATIVE, backend="aoti"), tiny.inputs(RELATIVE)
    with contextlib.closing(engine):
        engine.prepare()
        job = engine.job
        assert job is not None
        engine.prepare()
        assert engine.job is job, "a second call starts nothing"
        fractions, stages = [], set()
        while not job.wait(0.5):
            status = engine.status
            stages.add(job.progress().stage)
            if status.progress is not None and status.progress.fraction is not None:
                fractions.append(status.progress.fraction)
            assert (status.state, status.backend, engine.take_up()) == (
                "compiling",
                "aoti",
                False,
            ) or job.done
            if len(fractions) in (1, 4):
                tiny.check(engine, given)
        assert engine.counters.accelerated_calls == 0
        assert fractions == sorted(fractions)
        assert fractions[0] < 1 == job.progress().fraction
        assert "compiling SpatialTransformer 64 x1" in stages
        assert engine.take_up()
        assert not engine.take_up()
        tiny.check(engine, given)
        assert (
            engine.status.state,
            engine.counters.compiles,
            engine.counters.accelerated_calls,
        ) == ("ready", 1, 1)
    ready(own_store, RELATIVE)
    ready(own_store)


def test_close_undoes_everything(tiny_store: Path):
    donor = tiny.donor()
    before, at = {k: v.clone() for k, v in donor.state_dict().items()}, addresses(donor)
    engine, given = ready(tiny_store, unet=donor), tiny.inputs()
    expected = tiny.clean(engine, *given)
    served(engine, given)
    engine.close()
    engine.close()
    assert addresses(donor) == at
    assert all(p.is_meta for p in engine.clean.parameters()), (
        "weights the host throws away must not live on with us"
    )
    assert all(
        torch.equal(v, before[k]) and v.is_contiguous() for k, v in donor.state_dict().items()
    )
    assert torch.equal(engine.compute(*given), expected), "without compiled code"
    assert engine.counters.accelerated_calls == 1
    assert engine.status.state == "eager"
    engine.prepare()
    served(engine, given)


def test_layers_of_others_run_their_way(tiny_store: Path):
    engine, given = ready(tiny_store), tiny.inputs()
    seen: list[torch.Size] = []

    def patched(h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        seen.append(h.shape)
        return 2 * h

    x, timesteps, context, y = given
    out = engine.compute(x, timesteps, context, y, {"middle_block.1": patched})
    assert len(seen) == 1
    assert torch.allclose(
        out,
        tiny.clean(engine, *given, {**engine.clean.layers, "middle_block.1": patched}),
        atol=1e-5,
    )
    assert not torch.allclose(out, served(engine, given), atol=1e-3)
