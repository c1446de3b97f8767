"""LoRAs merged by us beside the Lora extension: same weights, true marks, removed to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ..tiny import inputs
from .host import Host, counted

QUERY, CONV, NORM, VALUE = (
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "middle_block.0.in_layers.2",
    "middle_block.1.norm",
    "output_blocks.3.1.transformer_blocks.0.attn2.to_v",
)


def _plain_lora(outputs: int, inputs_: int, *kernel: int) -> dict[str, Tensor]:
    up = torch.randn(outputs, 4, *[1] * len(kernel))
    return {
        "lora_up.weight": up,
        "lora_down.weight": torch.randn(4, inputs_, *kernel) * 0.3,
        "alpha": torch.tensor(2.0),
    }


@pytest.fixture
def lora(host: Host) -> Any:
    return host.network(
        "lora",
        {QUERY: _plain_lora(64, 64), CONV: _plain_lora(64, 64, 3, 3), VALUE: _plain_lora(64, 16)},
    )


@pytest.fixture
def full(host: Host) -> Any:
    """A network of a type that has no factors and changes a bias."""
    parts = {"diff": torch.randn(64) * 0.3, "diff_b": torch.randn(64) * 0.3}
    return host.network("full", {NORM: parts, QUERY: {"diff": torch.randn(64, 64) * 0.1}})


def weights(host: Host) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in host.unet.named_parameters()}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [
        name
        for name in {*a, *b}
        if name not in a or name not in b or not torch.equal(a[name], b[name])
    ]


def test_the_weights_are_those_that_the_lora_extension_makes(
    host: Host, lora: Any, full: Any
) -> None:
    base, bare = weights(host), host.call()
    for wanted, changed in (((lora,), 3), ((lora, full), 5), ((full, lora), 5), ((full,), 3)):
        host.want(*wanted)
        with counted(host, accelerated_calls=1, host_calls=0, lora_merges=1, compiles=0):
            out = host.call()
        assert torch.allclose(out, host.plain(), atol=1e-4)
        assert not torch.allclose(out, bare, atol=1e-2)
        assert len(apart(base, weights(host))) == changed
    host.want()
    assert torch.equal(host.call(), bare)
    assert apart(base, weights(host)) == []


def test_a_set_is_merged_once(host: Host, lora: Any) -> None:
    host.want(lora)
    with counted(host, lora_merges=1, accelerated_calls=3):
        assert torch.equal(host.call(), host.call())
        host.call(inputs(height=24))


def test_a_strength_changed_between_two_calls_takes_effect(host: Host, lora: Any) -> None:
    host.want(lora)
    first = host.call()
    for strength in (0.3, -1.0, 0.0):
        lora.te_multiplier, lora.unet_multiplier = 0.5, strength
        out = host.call()
        assert torch.allclose(out, host.plain(), atol=1e-4)
        assert not torch.allclose(out, first, atol=1e-3)
    lora.unet_multiplier, lora.dyn_dim = 1.0, 2  # half of its ranks
    out = host.call()
    assert torch.allclose(out, host.plain(), atol=1e-4)
    assert not torch.allclose(out, first, atol=1e-3)


def test_the_same_network_loaded_anew_is_not_merged_again(host: Host, lora: Any) -> None:
    """The Lora extension may read the file again; it too goes by name and strengths."""
    host.want(lora)
    host.call()
    again = host.module("network").Network("lora", None)
    again.modules = lora.modules
    host.want(again)
    with counted(host, lora_merges=0, accelerated_calls=1):
        host.call()


def test_marks_and_backups_are_true(host: Host, lora: Any) -> None:
    base = weights(host)
    host.want(lora)
    host.call()
    touched, other = (
        host.unet.get_submodule(CONV),
        host.unet.get_submodule("middle_block.2.in_layers.2"),
    )
    assert touched.network_current_names == (("lora", 1.0, 1.0, None),)
    assert torch.equal(touched.network_weights_backup, base[f"{CONV}.weight"])
    assert torch.equal(touched.network_bias_backup, base[f"{CONV}.bias"])
    assert getattr(other, "network_current_names", ()) == ()
    merged = touched.weight.detach().clone()
    host.merge(touched)
    assert torch.equal(touched.weight, merged), "merged twice"


def test_the_lora_extension_and_we_take_out_what_the_other_has_merged(
    host: Host, lora: Any, full: Any
) -> None:
    base, bare = weights(host), host.call()
    host.want(lora)
    ours = host.call()
    host.opts.set("accel_enable", False)
    assert torch.allclose(host.call(), ours, atol=1e-4)
    host.want(lora, full)
    assert torch.allclose(host.call(), host.plain(), atol=1e-4)
    host.opts.set("accel_enable", True)
    with counted(host, lora_merges=0, accelerated_calls=1):
        assert torch.allclose(host.call(), host.plain(), atol=1e-4)
    host.want()
    with counted(host, lora_merges=1):
        assert torch.equal(host.call(), bare)
    assert apart(base, weights(host)) == []
    host.want(lora)
    host.call()
    host.opts.set("accel_enable", False)
    host.want()
    assert torch.allclose(host.call(), bare, atol=1e-5)
    assert apart(base, weights(host)) == []


def test_a_network_may_add_a_bias_to_a_layer_without_one(host: Host) -> None:
    """The bias counts in every call, where the Lora extension raises, and is gone afterwards."""
    base, bare = weights(host), host.call()
    net = host.network(
        "biased",
        {
            QUERY: {"diff": torch.randn(64, 64) * 0.1, "diff_b": torch.randn(64)},
            CONV: _plain_lora(64, 64, 3, 3),
        },
    )
    net.unet_multiplier = 0.7
    host.want(net)
    with counted(host, accelerated_calls=2, host_calls=0, lora_merges=1):
        out = host.call()
        assert torch.equal(host.call(), out)
    assert torch.allclose(out, host.plain(), atol=1e-4)
    assert not torch.allclose(out, bare, atol=1e-2)
    assert sorted(apart(base, weights(host))) == sorted(
        [f"{CONV}.weight", f"{QUERY}.weight", f"{QUERY}.bias"]
    )
    host.want()
    assert torch.equal(host.call(), bare)
    assert apart(base, weights(host)) == []
    host.want(net)
    host.call()
    host.opts.set("accel_enable", False)
    host.want()
    assert torch.allclose(host.call(), bare, atol=1e-5)
    assert apart(base, weights(host)) == []


@pytest.mark.parametrize("good_first", [True, False])
def test_a_network_that_does_not_fit_is_left_out_and_counted(
    host: Host, lora: Any, good_first: bool
) -> None:
    """The count is for the WebUI's message under the image."""
    broken = host.network(
        "broken",
        {
            CONV: {"diff": torch.zeros(7, 5, 3, 3)},
            VALUE: _plain_lora(20, 16),
            NORM: {"diff": torch.zeros(9)},
        },
    )
    host.want(*((lora, broken) if good_first else (broken, lora)))
    base = weights(host)
    out = host.call()
    assert host.networks.extra_network_lora.errors == {"broken": 3}
    assert sorted(apart(base, weights(host))) == sorted(
        f"{name}.weight" for name in (QUERY, CONV, VALUE)
    )
    assert torch.allclose(out, host.plain(), atol=1e-4)
    assert host.networks.extra_network_lora.errors == {"broken": 6}, (
        "the Lora extension counts the same layers"
    )


def test_after_an_interrupted_merge_the_next_one_begins_at_the_base(
    host: Host, lora: Any, full: Any
) -> None:
    base, bare = weights(host), host.call()
    part = full.modules[f"diffusion_model_{QUERY.replace('.', '_')}"]
    part.calc_updown = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
    host.want(lora, full)
    with pytest.raises(KeyboardInterrupt):
        host.call()
    del part.calc_updown
    assert torch.allclose(host.call(), host.plain(), atol=1e-4)
    host.want()
    assert torch.equal(host.call(), bare)
    assert apart(base, weights(host)) == []


def test_a_merge_interrupted_after_a_weight_was_written_leaves_no_false_mark(
    host: Host, lora: Any
) -> None:
    bare, ours = host.call(), host.module("lib_accel.host.unet.lora.layers")
    merge = ours.merge

    def cut(*given: Any) -> None:
        merge(*given)
        raise KeyboardInterrupt

    ours.merge = cut
    host.want(lora)
    with pytest.raises(KeyboardInterrupt):
        host.call()
    ours.merge = merge
    host.want()
    assert torch.equal(host.call(), bare)


def test_weights_loaded_in_place_replace_merged_ones(host: Host, lora: Any) -> None:
    """The Lora extension then drops its marks and backups, and so do we."""
    host.want(lora)
    host.call()
    other = host.new_unet(seed=5)
    host.unet.load_state_dict(other.state_dict())
    host.module("modules.script_callbacks").model_loaded_callback(host.model)
    out = host.call()
    assert torch.allclose(out, host.plain(seed=5), atol=1e-4)
    host.want()
    assert torch.allclose(host.call(), host.plain(seed=5), atol=1e-5)
    assert apart(dict(other.named_parameters()), weights(host)) == []


def test_a_bias_that_a_network_added_goes_when_another_checkpoint_is_loaded(host: Host) -> None:
    """The checkpoint has no such bias to load over it, and the backup is gone."""
    host.want(
        host.network(
            "biased", {QUERY: {"diff": torch.randn(64, 64) * 0.1, "diff_b": torch.randn(64)}}
        )
    )
    host.call()
    assert host.unet.get_submodule(QUERY).bias is not None
    host.unet.load_state_dict(host.new_unet(seed=5).state_dict(), strict=False)
    host.module("modules.script_callbacks").model_loaded_callback(host.model)
    host.want()
    assert torch.allclose(host.call(), host.plain(seed=5), atol=1e-5)
    assert host.unet.get_submodule(QUERY).bias is None


def test_an_image_without_the_network_is_as_before(host: Host, lora: Any) -> None:
    plain = host.image()
    styled = host.image(lora)
    assert not torch.allclose(styled.made[0], plain.made[0], atol=1e-2)
    assert torch.equal(host.image().made[0], plain.made[0])
