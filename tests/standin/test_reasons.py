"""What compiled code cannot follow: the WebUI computes it, and the status says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lib_accel.compile.backends import jit

from ..tiny import inputs
from .host import MIDDLE_QUERY, Host, counted, factors


def _hypernetwork(host: Host) -> Callable[[], None]:
    host.module("modules.shared").loaded_hypernetworks.append(object())
    return host.module("modules.shared").loaded_hypernetworks.clear


def _upcast(host: Host) -> Callable[[], None]:
    host.module("modules.devices").unet_needs_upcast = True
    return lambda: setattr(host.module("modules.devices"), "unet_needs_upcast", False)


@pytest.mark.parametrize(
    ("begin", "reason"),
    [(_hypernetwork, "a hypernetwork is active"), (_upcast, "the WebUI upcasts this UNet")],
)
def test_a_reason_of_the_moment_ends_with_its_cause(
    host: Host, begin: Callable[[Host], Callable[[], None]], reason: str
) -> None:
    end = begin(host)
    with counted(host, accelerated_calls=0, host_calls=1):
        out = host.call()
    assert reason in host.status()["reason"]
    assert torch.equal(out, host.plain())
    end()
    with counted(host, accelerated_calls=1, host_calls=0):
        host.call()
    assert host.status()["reason"] is None


@pytest.mark.parametrize(
    ("frozen", "reason"),
    [(False, "the UNet is being trained"), (True, "this call is differentiated")],
)
def test_a_call_with_gradients_is_not_accelerated(host: Host, frozen: bool, reason: str) -> None:
    """Textual inversion trains so: gradients reach the input, also through a frozen model."""
    host.unet.requires_grad_(not frozen)
    x, timesteps, context, _ = inputs()
    context.requires_grad_(True)
    with counted(host, accelerated_calls=0, host_calls=1):
        host.unet(x, timesteps, context=context).sum().backward()
    assert host.status()["reason"] == reason
    assert context.grad is not None
    assert context.grad.any()


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore::DeprecationWarning",
    "ignore:`torch.jit:FutureWarning",  # from torch 2.14 on
)
def test_an_exported_unet_holds_its_own_code(host: Host) -> None:
    """A trace would record the output of compiled code as a constant."""
    x, timesteps, context, _ = inputs()
    with counted(host, accelerated_calls=0), torch.no_grad():
        traced = torch.jit.trace(host.unet, (x, timesteps, context), check_trace=False)
    assert host.status()["reason"] == "the UNet is being exported"
    other = (torch.randn_like(x), timesteps, context, None)
    assert torch.allclose(traced(*other[:3]), host.plain(other), atol=1e-5)


def test_a_unit_that_the_jit_backend_compiles_meanwhile_is_no_export(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch has one flag for all threads, and a cancelled job finishes its unit."""
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    with counted(host, accelerated_calls=0, host_calls=1):
        host.call()
    assert host.status()["reason"] == "the UNet is being exported"
    with jit.TRACING, counted(host, accelerated_calls=1, host_calls=0):
        host.call()
    assert host.status()["reason"] is None


def test_upcast_attention_is_left_to_the_webui(host: Host) -> None:
    """The WebUI advises it against NaN. It changes nothing for float32 weights."""
    host.opts.set("upcast_attn", True)
    with counted(host, accelerated_calls=1):
        host.call()
    host.unet.to(torch.bfloat16)
    x, timesteps, context, _ = inputs()
    with (
        counted(host, accelerated_calls=0, host_calls=1),
        torch.no_grad(),
        pytest.raises(RuntimeError),
    ):  # without the WebUI's autocast
        host.unet(x, timesteps, context=context)
    assert "the WebUI computes attention in float32" in host.status()["reason"]


def test_another_extensions_unet_is_left_in_place(host: Host) -> None:
    sd_unet = host.module("modules.sd_unet")

    class Theirs(sd_unet.SdUnet):
        def forward(self, x: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
            return x * 3

    class Option(sd_unet.SdUnetOption):
        label = "theirs"

        def create_unet(self) -> Any:
            return Theirs()

    sd_unet.unet_options.append(Option())
    host.opts.set("sd_unet", "theirs")
    with counted(host, accelerated_calls=0, host_calls=1):
        p = host.image(steps=1)
    assert host.status()["reason"] == "another extension's UNet is active: theirs"
    assert torch.equal(p.made[0], p.x - 0.1 * (p.x * 3))
    assert "Accel" not in p.extra_generation_params
    host.opts.set("sd_unet", "None")
    assert host.image(steps=1).extra_generation_params["Accel"] == "aoti"


def test_loras_applied_at_run_time_are_left_to_the_webui(host: Host) -> None:
    lora = host.network("lora", {MIDDLE_QUERY: factors()})
    merged, bare = host.image(lora), host.image()
    host.opts.set("lora_functional", True)
    with counted(host, accelerated_calls=0, host_calls=2, lora_merges=0):
        functional = host.image(lora)
    assert "LoRAs are applied at run time" in host.status()["reason"]
    assert torch.allclose(functional.made[0], merged.made[0], atol=1e-4)
    assert not torch.allclose(functional.made[0], bare.made[0], atol=1e-2)
    with counted(host, accelerated_calls=2, host_calls=0):  # the setting alone does no harm
        assert torch.equal(host.image().made[0], bare.made[0])


@torch.no_grad()
def test_a_call_with_unknown_arguments_is_left_to_the_webui(host: Host) -> None:
    """By position or by name. `y` is known, and None for this UNet."""
    x, timesteps, context, _ = inputs()
    plain = host.plain()
    calls: list[tuple[Callable[[], torch.Tensor], str]] = [
        (lambda: host.unet(x, timesteps, context=context, control=1), "control"),
        (
            lambda: host.unet(x, timesteps, context, None, transformer_options={}),
            "transformer_options",
        ),
    ]
    for call, name in calls:
        with counted(host, accelerated_calls=0, host_calls=1):
            assert torch.equal(call(), plain)
        assert (
            host.status()["reason"]
            == f"this call gives the UNet more than compiled code knows: {name}"
        )
    for call in (
        lambda: host.unet(x, timesteps, context),
        lambda: host.unet(x, timesteps=timesteps, context=context, y=None),
    ):
        with counted(host, accelerated_calls=1, host_calls=0):
            assert torch.allclose(call(), plain, atol=1e-5)


@torch.no_grad()
def test_a_call_without_context_raises_the_webuis_error(host: Host) -> None:
    x, timesteps, _, _ = inputs()
    with counted(host, accelerated_calls=0, host_calls=1), pytest.raises(RuntimeError):
        host.unet(x, timesteps)
    assert "more than compiled code knows: NoneType" in host.status()["reason"]
    host.call()


def test_weights_of_an_unknown_dtype_are_left_to_the_webui(host: Host) -> None:
    """It stands for float8 storage, which computes only under the WebUI's autocast."""
    host.unet.to(torch.float64)
    x, timesteps, context, _ = inputs()
    with (
        counted(host, accelerated_calls=0, host_calls=1),
        torch.no_grad(),
        pytest.raises(RuntimeError),
    ):
        host.unet(x, timesteps, context=context)
    assert host.status()["reason"] == "the weights are stored as torch.float64"
    host.unet.to(torch.float32)
    with counted(host, accelerated_calls=1):
        assert torch.allclose(host.call(), host.plain(), atol=1e-5)


def test_a_setting_out_of_range_is_taken_back(host: Host) -> None:
    host.opts.set("accel_graphs_mib", -5)
    assert host.opts.data["accel_graphs_mib"] == 0
    assert host.image().extra_generation_params["Accel"] == "aoti"
    assert host.opts.set("accel_graphs_mib", 64)
    assert host.image().extra_generation_params["Accel"] == "aoti"


def test_the_console_only_shows_what_is_said(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of networks come from their files."""
    host.module("lib_accel.host.webui").say("LoRA \x1b[2J\r\u202e水墨: it failed\n  twice")
    shown = "Acceleration: LoRA \\x1b[2J\\r\\u202e水墨: it failed\n  twice\n"
    assert capsys.readouterr().out == shown
