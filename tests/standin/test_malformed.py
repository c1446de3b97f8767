"""Networks that are not as they should be: an image ends as it does without acceleration."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..tiny import inputs
from .host import HERE, Host, load_file

_facts = load_file("malformed", HERE / "facts" / "malformed.py")  # its package needs a WebUI
networks_for = _facts.networks_for

LAYERS = (
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",  # has no bias
    "middle_block.0.in_layers.2",
    "middle_block.1.norm",
)
SMALL = inputs(batch=1, height=4, width=4, length=3)

pytestmark = pytest.mark.slow


@pytest.fixture
def host(eager_host: Host) -> Host:
    """Without a compiler: LoRAs are merged as they are for compiled code."""
    return eager_host


def _ends(host: Host, unet: nn.Module | None = None) -> tuple[str, Tensor | None, dict[str, int]]:
    """Return how one call ends: what it raises, what it computes, and what it counts."""
    errors, out, raised = host.networks.extra_network_lora.errors, None, ""
    errors.clear()
    try:
        out = host.call(SMALL, unet)
    except Exception as e:  # noqa: BLE001  it is compared
        raised = type(e).__name__
    return raised, out, dict(errors)


def _read(host: Host, layer: str, parts: dict[str, Tensor], name: str = "odd") -> Any:
    """Return the network; None where the Lora extension itself cannot read it."""
    try:
        return host.network(name, {layer: {k: v.clone() for k, v in parts.items()}})
    except Exception:  # noqa: BLE001  the extension prints it and goes on without the network
        return None


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind", _facts.KINDS)
def test_a_malformed_network_ends_as_without_acceleration(host: Host, kind: str) -> None:
    """The same picture or the same error, and the picture after it is right to the bit."""
    bare, plain, seen, wrong = host.call(SMALL), host.plain_unet(), 0, []
    for layer in LAYERS:
        module: Any = plain.get_submodule(layer)
        good, shape = copy.deepcopy(module.state_dict()), tuple(module.weight.shape)
        for name, parts in networks_for(shape, kind):
            first, second = (_read(host, layer, parts, f"{layer} {name}") for _ in range(2))
            if first is None:
                continue
            seen += 1
            host.want(first)
            off = _ends(host, plain)
            host.want(second)
            on = _ends(host)
            if not _same(off, on):
                wrong.append(f"{layer}, {name}: {_brief(off)} without, {_brief(on)} with")
            host.want()
            if not torch.equal(host.call(SMALL), bare):
                wrong.append(f"{layer}, {name}: the next picture is another one")
            module.bias = module.bias if "bias" in good else None
            module.load_state_dict(good)  # after an error, the extension keeps half-merged weights
    assert seen
    assert wrong == []


def _same(off: Any, on: Any) -> bool:
    if (off[0], off[2]) != (on[0], on[2]):
        return False
    return off[1] is on[1] or torch.allclose(off[1], on[1], rtol=1e-3, atol=1e-3, equal_nan=True)


def _brief(end: Any) -> str:
    raised, out, errors = end
    return raised or f"a picture of norm {out.norm():.4f}, errors {errors}"


def test_the_facts_do_not_depend_on_which_warnings_raise(host: Host) -> None:
    host.listen()
    raising = host.facts("lora")["malformed"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert host.facts("lora")["malformed"] == raising


@pytest.mark.parametrize("rank", [0, 1, -1, 1000, -1000])
def test_any_number_of_ranks_in_the_prompt_ends_as_without_acceleration(
    host: Host, rank: int
) -> None:
    bare = host.call(SMALL)
    parts = dict(networks_for((64, 64), "lora"))["lora: good"]
    net = _read(host, LAYERS[0], parts)
    net.dyn_dim = rank
    host.want(net)
    assert _same(_ends(host, host.plain_unet()), _ends(host))
    host.want()
    assert torch.equal(host.call(SMALL), bare)


def test_a_layer_left_to_the_lora_extension_is_named_once(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = dict(networks_for((64, 64, 3, 3), "full"))["full: diff_b shorter"]
    net = _read(host, LAYERS[1], parts)
    host.want(net)
    for net.unet_multiplier in (1.0, 0.5):
        host.call(SMALL)
    lines = [x for x in capsys.readouterr().out.splitlines() if "Lora extension's own code" in x]
    assert len(lines) == 1, lines
    assert "LoRA odd: diffusion_model_middle_block_0_in_layers_2" in lines[0]
    assert "RuntimeError: The size of tensor a (64)" in lines[0]


def test_a_layer_left_to_the_lora_extension_is_merged_with_the_other_networks(host: Host) -> None:
    good = host.network(
        "good", {LAYERS[1]: dict(networks_for((64, 64, 3, 3), "lora"))["lora: good"]}
    )
    odd = _read(host, LAYERS[1], dict(networks_for((64, 64, 3, 3), "full"))["full: diff_b shorter"])
    bare = host.call(SMALL)
    for wanted in ((good, odd), (odd, good), (good,), (odd,)):
        host.want(*wanted)
        assert _same(_ends(host, host.plain_unet()), _ends(host))
    host.want()
    assert torch.equal(host.call(SMALL), bare)
