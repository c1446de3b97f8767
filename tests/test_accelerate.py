"""The public door: `lib_accel.accelerate`, and what it gives back."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lib_accel
from lib_accel.errors import BadCheckpoint, UnsupportedArchitecture
from lib_accel.runtime.lora.files import random_deltas, save_lora

from . import tiny
from .standin.host import left_behind, own_attributes
from .threads import one_thread  # noqa: F401  (a fixture)


@pytest.fixture
def unet() -> nn.Module:
    return tiny.donor()


@pytest.fixture
def config(tiny_store: Path) -> lib_accel.Config:
    """The store has the code of tests/tiny.py's UNet; nothing is compiled."""
    return lib_accel.Config(store=tiny_store, compile=False)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "style.safetensors"
    save_lora(path, tiny.TINY, random_deltas(tiny.TINY, rank=4, seed=1))
    return path


def call(unet: nn.Module) -> Tensor:
    x, timesteps, context, _ = tiny.inputs()
    with torch.no_grad():
        return unet(x, timesteps, context=context)


@contextlib.contextmanager
def served(accelerated: lib_accel.Accelerated, calls: int) -> Iterator[None]:
    """Compiled code must compute just so many calls."""
    before = accelerated.status.counters.accelerated_calls
    yield
    assert accelerated.status.counters.accelerated_calls == before + calls


def test_a_call_runs_compiled_code_and_remove_undoes_it(unet: nn.Module, config: lib_accel.Config):
    plain, before = call(unet), own_attributes(unet)
    weights = tiny.addresses(unet)
    accelerated = lib_accel.accelerate(unet, config)
    assert accelerated.status.state == "ready", accelerated.status.reason
    with served(accelerated, 1):
        fast = call(unet)
    assert torch.allclose(fast, plain, atol=1e-5)
    assert tiny.addresses(unet) == weights, "there is one copy of the weights"
    accelerated.remove()
    assert left_behind(before, unet) == []
    assert torch.equal(call(unet), plain)
    accelerated.remove()
    assert torch.equal(call(unet), plain)


def test_accelerating_twice_is_accelerating_once(unet: nn.Module, config: lib_accel.Config):
    accelerated = lib_accel.accelerate(unet, config)
    assert lib_accel.accelerate(unet) is accelerated
    assert lib_accel.accelerate(unet, config) is accelerated
    eager = lib_accel.accelerate(unet, lib_accel.Config(store=config.store, backend="eager"))
    assert eager is not accelerated
    with served(accelerated, 0):
        call(unet)
    eager.remove()
    assert "forward" not in vars(unet)


def test_as_a_context_manager(unet: nn.Module, config: lib_accel.Config):
    with lib_accel.accelerate(unet, config) as accelerated, served(accelerated, 1):
        call(unet)
    assert "forward" not in vars(unet)


def test_another_forward_on_the_unet_is_kept_and_comes_back(
    unet: nn.Module, config: lib_accel.Config
):
    original, calls = unet.forward, []

    def counting(*args: object, **named: object) -> Tensor:
        calls.append(1)
        return original(*args, **named)

    unet.forward = counting
    accelerated = lib_accel.accelerate(unet, config)
    call(unet)
    assert not calls
    x, timesteps, context, _ = tiny.inputs()
    with torch.no_grad(), pytest.raises(TypeError, match="control"):
        unet(x, timesteps, context, control=[])  # compiled code does not know this argument
    assert calls
    assert "control" in str(accelerated.reason)
    accelerated.remove()
    assert unet.forward is counting


def test_loras_are_merged_for_the_length_of_a_with(
    unet: nn.Module, config: lib_accel.Config, lora: Path
):
    accelerated = lib_accel.accelerate(unet, config)
    plain, weights = call(unet), {k: v.clone() for k, v in unet.state_dict().items()}
    with served(accelerated, 4):
        with accelerated.lora([(lora, 0.8)]):
            one = call(unet)
            with accelerated.lora([(str(lora), -0.3)]):
                two = call(unet)
            assert torch.equal(call(unet), one)
        assert torch.equal(call(unet), plain)
    assert all(torch.equal(v, weights[k]) for k, v in unet.state_dict().items())
    outputs = (plain, one, two)
    assert all(not torch.allclose(a, b, atol=1e-3) for a in outputs for b in outputs if a is not b)
    with accelerated.lora([(lora, 0.8)]), accelerated.lora([(lora, -0.8)]):
        assert torch.allclose(call(unet), plain, atol=1e-4), "opposite strengths cancel"


def test_a_lora_that_does_not_fit_changes_nothing(
    unet: nn.Module, config: lib_accel.Config, tmp_path: Path
):
    path = tmp_path / "other.safetensors"
    save_lora(path, tiny.RELATIVE, random_deltas(tiny.RELATIVE, rank=4, seed=1))
    accelerated = lib_accel.accelerate(unet, config)
    plain = call(unet)
    with (
        pytest.raises(BadCheckpoint, match="for another architecture"),
        accelerated.lora([(path, 1.0)]),
    ):
        pass
    assert torch.equal(call(unet), plain)


def test_remove_inside_a_with_takes_the_loras_out(
    unet: nn.Module, config: lib_accel.Config, lora: Path
):
    plain = call(unet)
    accelerated = lib_accel.accelerate(unet, config)
    with accelerated.lora([(lora, 1.0)]):
        accelerated.remove()
        assert torch.equal(call(unet), plain)
    assert torch.equal(call(unet), plain)


def test_gradients_reach_every_input(tmp_path: Path):
    unet = tiny.donor(tiny.WITH_Y).requires_grad_(False)
    lib_accel.accelerate(unet, lib_accel.Config(store=tmp_path, backend="eager"))
    for i in (0, 2, 3):
        x, timesteps, context, _ = tiny.inputs()
        given = [x, timesteps, context, torch.randn(2, 12)]
        given[i].requires_grad_()
        unet(*given).sum().backward()
        assert given[i].grad is not None, i


def test_wait_returns_when_code_cannot_be_made(unet: nn.Module, tmp_path: Path):
    config = lib_accel.Config(store=tmp_path, backend="jit", compile=False)
    with lib_accel.accelerate(unet, config) as accelerated:
        status = accelerated.wait()
        assert (status.state, status.backend) == ("eager", "eager")
        assert "compiling is switched off" in str(status.reason)


def test_a_module_that_is_no_unet_is_refused():
    with pytest.raises(UnsupportedArchitecture, match="not a UNet in the LDM layout"):
        lib_accel.accelerate(nn.Linear(3, 3))


def test_an_unknown_backend_leaves_the_unet_alone(unet: nn.Module, tmp_path: Path):
    with pytest.raises(
        ValueError, match="backend is 'magic'; expected one of auto, tensorrt, aoti"
    ):
        lib_accel.accelerate(unet, lib_accel.Config(store=tmp_path, backend="magic"))
    assert "forward" not in vars(unet)


def test_importing_the_package_imports_nothing_else():
    code = "import sys, lib_accel; assert 'torch' not in sys.modules; lib_accel.accelerate"
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(lib_accel.__file__).parents[1]
    )
