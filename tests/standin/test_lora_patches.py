"""What other extensions do to the Lora extension's own functions takes effect."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

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
