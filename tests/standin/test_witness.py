"""A step computed both ways: the WebUI's own result tells what no looking finds."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..tiny import inputs
from .host import Host, counted, in_place

BLOCK = "input_blocks.1.1.transformer_blocks.0"


def blind(host: Host, monkeypatch: pytest.MonkeyPatch, seen: set[str]) -> None:
    """Let inspectors see only the layers in `seen`, and `around` them; nothing new is told."""
    inspector = host.module("lib_accel.host.unet.inspection").Inspector
    real = inspector.look

    def look(self: Any) -> tuple[dict[str, str], str | None]:
        version = self.version
        layers, around = real(self)
        self.version = version
        found = {name: what for name, what in layers.items() if name in seen}
        return found, around if "around" in seen else None

    monkeypatch.setattr(inspector, "look", look)


@pytest.fixture
def seen() -> set[str]:
    """The names of the layers whose changes the inspector sees."""
    return set()


@contextlib.contextmanager
def witnessing(
    store: Path, backend: str, monkeypatch: pytest.MonkeyPatch, seen: set[str]
) -> Iterator[Host]:
    """Run a stand-in whose inspector is blind and whose steps are witnessed, none by chance."""
    with in_place():
        host = Host("--accel-store", str(store), "--accel-backend", backend)
        blind(host, monkeypatch, seen)
        host.witness()
        host.opts.set("accel_witness_steps", 0)
        host.load()
        yield host
        host.close()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: set[str]) -> Iterator[Host]:
    """A stand-in whose clean UNet serves."""
    with witnessing(tmp_path, "eager", monkeypatch, seen) as host:
        yield host


def change(host: Host, layer: str, by: float = 1.5) -> Callable[[], None]:
    """Scale what a part of the UNet answers, and count the calls in its attribute `calls`."""
    module: Any = host.unet.get_submodule(layer)
    original, module.calls = module.forward, 0

    def forward(*given: Any, **named: Any) -> Tensor:
        module.calls += 1
        return original(*given, **named) * by

    module.forward = forward
    return lambda: delattr(module, "forward")


def witnessed(host: Host) -> int:
    return host.status()["witnessed"]


def expected(host: Host, *args: Any) -> Tensor:
    """Return what the WebUI alone computes now."""
    host.opts.set("accel_enable", False)
    out = host.call(*args)
    host.opts.set("accel_enable", True)
    return out


def test_the_first_step_is_witnessed_and_changes_no_bit(host: Host) -> None:
    first, second = host.call(), host.call()
    assert witnessed(host) == 1
    assert torch.equal(first, second)
    status = host.status()
    assert 0 < status["worst_error"] < 1e-5
    assert status["witness_seconds"] > 0
    assert status["difference"] is None


def test_a_change_that_nobody_saw_is_in_the_picture_and_only_its_layer_is_unaccelerated(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    undo = change(host, f"{BLOCK}.attn1")
    images = [host.image(steps=4).made[0] for _ in range(2)]
    undo()
    plain = host.new_unet()
    lines = [x for x in capsys.readouterr().out.splitlines() if "please report" in x]
    assert len(lines) == 1
    assert "differ in input_blocks.1.1, by " in lines[0]
    assert host.status()["difference"] in lines[0]
    assert host.status()["reason"].startswith("1 layer is not accelerated: compiled code and")
    change_on(plain)
    assert all(torch.allclose(i, _image(host, plain, 4), atol=1e-4) for i in images)


def change_on(unet: Any) -> None:
    attention = unet.get_submodule(f"{BLOCK}.attn1")
    original = attention.forward
    attention.forward = lambda *given, **named: original(*given, **named) * 1.5


def _image(host: Host, unet: nn.Module, steps: int) -> Tensor:
    x, timesteps, context, _ = inputs()
    for _ in range(steps):
        x = x - 0.1 * host.call((x, timesteps, context, None), unet)
    return x


def test_this_image_goes_on_the_webuis_way(host: Host) -> None:
    change(host, f"{BLOCK}.attn1")
    with counted(host, accelerated_calls=0, host_calls=3):
        p = host.image(steps=3)
    assert "Accel" not in p.extra_generation_params
    with host.watched() as unaccelerated:
        host.image(steps=3)
        assert unaccelerated(host.unet) == {"input_blocks.1.1"}


def test_where_no_layer_alone_explains_it_the_whole_unet_is_unaccelerated(host: Host) -> None:
    """The time embedding is in no layer."""
    change(host, "time_embed")
    out = [host.call() for _ in range(3)]
    assert "the UNet as a whole" in host.status()["difference"]
    host.image()
    host.image()
    assert host.status()["reason"].endswith("no layer alone explains it")
    assert all(torch.equal(o, expected(host)) for o in out)


def test_nothing_foreign_runs_a_second_time(host: Host, seen: set[str]) -> None:
    """Neither a change that nobody saw, nor a layer that is known to run unaccelerated."""
    layer: Any = host.unet.get_submodule("middle_block.1")
    seen.add("middle_block.1")
    change(host, "middle_block.1")
    unseen: Any = host.unet.get_submodule(f"{BLOCK}.attn1")
    change(host, f"{BLOCK}.attn1", by=1.0)
    out = host.call()
    assert witnessed(host) == 1
    assert (layer.calls, unseen.calls) == (1, 1)
    assert torch.allclose(host.call(), out, atol=1e-5)
    assert (layer.calls, unseen.calls) == (2, 1)


def test_a_known_layer_does_not_hide_what_comes_before_it(host: Host, seen: set[str]) -> None:
    """In our way it answers what it has answered in the WebUI's."""
    seen.add("out")
    change(host, "out")
    host.call()
    change(host, "middle_block.0")
    host.service.before_images()
    out = [host.call() for _ in range(3)]
    assert "middle_block.0" in host.status()["difference"]
    assert all(torch.allclose(o, expected(host), atol=1e-5) for o in out)


def test_random_generators_are_as_after_one_pass(host: Host, seen: set[str]) -> None:
    np = pytest.importorskip("numpy")
    seen.add("middle_block.1")
    layer: Any = host.unet.get_submodule("middle_block.1")
    original = layer.forward
    layer.forward = lambda *given: (
        original(*given) * (1 + torch.rand(1) + random.random() + np.random.rand())
    )

    def draws() -> tuple[Tensor, list[float]]:
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        out = host.call()
        return out, [torch.rand(1).item(), random.random(), np.random.rand()]

    first, second = draws(), draws()
    assert witnessed(host) == 1
    assert first[1] == second[1]
    assert torch.allclose(first[0], second[0], atol=1e-5)


def test_both_ways_may_write_into_their_inputs(host: Host) -> None:
    """A change that writes into what it was given is found all the same."""
    layer: Any = host.unet.get_submodule("middle_block.0")
    original = type(layer).forward
    layer.forward = lambda h, emb: original(layer, h.mul_(2), emb)
    out = [host.call() for _ in range(2)]
    assert "middle_block.0" in host.status()["difference"]
    assert all(torch.equal(o, expected(host)) for o in out)


def test_nan_for_nan_is_equal(host: Host) -> None:
    with torch.no_grad():
        host.unet.out[2].bias.fill_(float("nan"))
    host.call()
    assert witnessed(host) == 1
    assert host.status()["difference"] is None
    assert host.status()["worst_error"] == 0


def test_nan_for_a_number_is_not(host: Host) -> None:
    change(host, "out", by=float("nan"))
    assert host.call().isnan().all()
    host.call()
    assert "differ in out, by 1.0e+00" in host.status()["difference"]


def test_a_step_whose_own_way_fails_is_ours(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """Its attention may need more memory than ours."""
    attention: Any = host.unet.get_submodule(f"{BLOCK}.attn1")

    def no_memory(*_: Any, **__: Any) -> Tensor:
        assert torch.rand(1) + random.random() >= 0
        raise torch.cuda.OutOfMemoryError("out of memory: tried to allocate 9 GiB")

    attention.forward = no_memory
    torch.manual_seed(3)
    out = host.call()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1)), "as if the WebUI's way had never begun"
    assert torch.allclose(out, host.plain(), atol=1e-5)
    assert "could not be compared with the WebUI's: out of memory" in capsys.readouterr().out
    host.call()
    assert witnessed(host) == 1


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, TypeError])
def test_a_step_whose_compiled_code_fails_is_the_webuis(
    host: Host, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: Any) -> Tensor:
        raise error("it failed")

    engine = host.service.current().engine
    monkeypatch.setattr(engine, "compute", fail)
    with counted(host, accelerated_calls=0, host_calls=1):
        assert torch.equal(host.call(), host.plain())
