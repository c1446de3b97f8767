"""What other extensions do to the Lora extension's own functions and marks takes effect."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .host import MIDDLE_QUERY, Host, factors


@pytest.mark.parametrize("name", ["network_apply_weights", "network_restore_weights_from_backup"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["", "wrapped"])
def test_a_patch_of_merging_is_called(eager_host: Host, name: str, wrapped: bool) -> None:
    host, called = eager_host, []
    original = getattr(host.networks, name)

    def theirs(layer: Any) -> None:
        called.append(layer)
        original(layer)

    setattr(host.networks, name, functools.wraps(original)(theirs) if wrapped else theirs)
    host.want(host.network("lora", {MIDDLE_QUERY: factors()}))
    out = host.call()
    assert called == [host.unet.get_submodule(MIDDLE_QUERY)]
    setattr(host.networks, name, original)
    assert torch.allclose(out, host.plain(), atol=1e-4)


@pytest.mark.parametrize("name", ["calc_updown", "finalize_updown"])
def test_a_patch_of_a_type_of_networks_is_called(eager_host: Host, name: str) -> None:
    host = eager_host
    kind = host.module("network_lora").NetworkModuleLora
    original, plain, parts = getattr(kind, name), host.call(), factors()

    @functools.wraps(original)
    def theirs(*given: Any) -> tuple[Tensor, Any]:
        delta, bias = original(*given)
        return delta * 2, bias

    host.want(host.network("lora", {MIDDLE_QUERY: parts}))
    merged = host.call()
    host.want()
    assert torch.equal(host.call(), plain)
    setattr(kind, name, theirs)
    host.want(host.network("lora", {MIDDLE_QUERY: parts}))
    assert torch.allclose(host.call(), host.plain(), atol=1e-4)
    assert not torch.allclose(host.call(), merged, atol=1e-3)


@pytest.mark.parametrize("name", ["calc_updown", "finalize_updown", "calc_scale", "multiplier"])
def test_a_patch_of_one_part_of_a_network_is_called(eager_host: Host, name: str) -> None:
    host = eager_host
    lora = host.network("lora", {MIDDLE_QUERY: factors()})
    [part] = lora.modules.values()
    original = getattr(part, name)

    def theirs(*given: Any) -> Any:
        out = original(*given)
        return (out[0] * 2, *out[1:]) if isinstance(out, tuple) else out * 2

    setattr(part, name, theirs)
    host.want(lora)
    out = host.call()
    setattr(part, name, original)
    part.network.unet_multiplier = 2
    assert torch.allclose(out, host.plain(), atol=1e-4)


ELSEWHERE = "middle_block.0.in_layers.2"
BIASED = {"diff": torch.eye(64), "diff_b": torch.ones(64)}  # the layer has no bias of its own


def _reset_marks(unet: nn.Module) -> None:
    for module in unet.modules():
        if hasattr(module, "network_current_names"):
            module.network_current_names = ()  # type: ignore[assignment]


@pytest.mark.parametrize("parts", [factors(), BIASED], ids=["", "with a bias"])
@pytest.mark.parametrize("then", ["nothing", "same", "weaker", "elsewhere", "both"])
def test_marks_that_are_reset_while_backups_stay(
    eager_host: Host, parts: dict[str, Tensor], then: str
) -> None:
    """The layer is as the Lora extension's own code leaves it, now and in the pictures after it.

    Without a mark it leaves what is merged where nothing is wanted, and otherwise begins at the
    backups.
    """
    host, plain = eager_host, eager_host.plain_unet()
    lora = host.network("lora", {MIDDLE_QUERY: parts})
    conv = {"diff": torch.randn(64, 64, 3, 3) * 0.1}
    other = host.network("other", {ELSEWHERE: conv})
    host.want(lora)
    assert torch.allclose(host.call(), host.call(unet=plain), atol=1e-4)
    for unet in (host.unet, plain):
        _reset_marks(unet)
    lora.unet_multiplier = 0.3 if then == "weaker" else 1.0
    sets = {"nothing": (), "elsewhere": (other,), "both": (lora, other)}
    for wanted in (sets.get(then, (lora,)), (), (other,), ()):
        host.want(*wanted)
        assert torch.allclose(host.call(), host.call(unet=plain), atol=1e-4), wanted


@pytest.mark.parametrize("removed", [False, True], ids=["another LoRA", "fewer layers"])
def test_a_layer_whose_mark_was_reset_is_given_its_base(eager_host: Host, removed: bool) -> None:
    """Extensions reset the marks to have a changed network merged again; backups stay."""
    host, other = eager_host, "middle_block.1.proj_in"
    one = host.network("one", {MIDDLE_QUERY: factors(), other: factors()})
    two = host.network("two", {MIDDLE_QUERY: factors()})
    host.want(one)
    host.call()
    for module in host.unet.modules():
        vars(module).pop("network_current_names", None)
    if removed:
        del one.modules[f"diffusion_model_{other.replace('.', '_')}"]
    host.want(one if removed else two)
    assert torch.allclose(host.call(), host.plain(), atol=1e-4)
