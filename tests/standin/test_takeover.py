"""A UNet is accelerated and given back: the same picture, and no trace."""

from __future__ import annotations

import pytest
import torch

from ..tiny import inputs
from .conftest import Start
from .host import Host, counted, left_behind, own_attributes

COUNTERS = {"compiles", "binds", "lora_merges", "accelerated_calls", "eager_calls", "host_calls"}
FIELDS = {
    "enabled",
    "state",
    "reason",
    "backend",
    "architecture",
    "dtype",
    "device",
    "progress",
    "artifact",
    "kept_bytes",
    "counters",
    "images_wait",
    "control_models",
    "witnessed",
    "worst_error",
    "witness_seconds",
    "speedup",
    "difference",
    "speeds",
    "vae",
    "phases",
}


@pytest.mark.parametrize(
    ("batch", "height", "width", "length"), [(2, 16, 16, 77), (1, 16, 24, 154), (3, 9, 13, 77)]
)
def test_the_answer_is_the_unaccelerated_one(
    host: Host, batch: int, height: int, width: int, length: int
) -> None:
    given = inputs(batch=batch, height=height, width=width, length=length)
    with counted(host, accelerated_calls=1, host_calls=0, compiles=0):
        out = host.call(given)
    assert torch.allclose(out, host.plain(given), atol=1e-5)
    assert host.status()["reason"] is None


def test_the_answer_does_not_come_from_the_unet_itself(host: Host) -> None:
    """Else the test above would pass without any compiled code: kernels round differently."""
    assert not torch.equal(host.call(), host.plain())


def test_switching_off_leaves_no_trace(start: Start) -> None:
    host = start()
    host.opts.set("accel_enable", False)
    unet = host.load()
    host.networks.assign_network_names_to_compvis_modules(host.model)
    bare, before = host.call(), own_attributes(unet)
    host.opts.set("accel_enable", True)
    assert "forward" in vars(unet)
    assert left_behind(before, unet)
    host.call()
    host.opts.set("accel_enable", False)
    assert left_behind(before, unet) == []
    assert torch.equal(host.call(), bare)


def test_room_is_made_for_the_vae_while_acceleration_is_on(eager_host: Host) -> None:
    """Hooks on its two parts do that; on a card, tests/gpu/test_full_card.py shows what for."""
    host, vae = eager_host, torch.nn.Module()
    vae.encoder, vae.decoder = torch.nn.Identity(), torch.nn.Identity()
    vae.decode = vae.decoder.forward
    host.model.first_stage_model = vae
    host.image()
    host.image()
    for part in (vae.encoder, vae.decoder):
        assert len(part._forward_pre_hooks) == 1
        x = torch.randn(1, 4, 8, 8)
        assert part(x) is x
    host.opts.set("accel_enable", False)
    assert [len(part._forward_pre_hooks) for part in (vae.encoder, vae.decoder)] == [0, 0]
    host.opts.set("accel_enable", True)
    host.image()
    host.close()
    assert [len(part._forward_pre_hooks) for part in (vae.encoder, vae.decoder)] == [0, 0]


def test_off_and_on_take_effect_at_the_next_image(host: Host) -> None:
    """The counters never fall."""
    on = host.image()
    with counted(host, accelerated_calls=0, host_calls=0):
        host.opts.set("accel_enable", False)
        off = host.image()
        assert host.status()["state"] == "off"
    host.opts.set("accel_enable", True)
    with counted(host, accelerated_calls=2):
        again = host.image()
    assert torch.equal(again.made[0], on.made[0])
    assert torch.allclose(off.made[0], on.made[0], atol=1e-5)
    assert [p.extra_generation_params.get("Accel") for p in (on, off, again)] == [
        "aoti",
        None,
        "aoti",
    ]


def test_an_option_changed_during_an_image_takes_effect_at_the_next(host: Host) -> None:
    """Weights must not move under a running image."""
    callbacks = host.module("modules.script_callbacks")
    callbacks.on_cfg_denoised(lambda _: host.opts.set("accel_enable", False))
    host.image(steps=3)
    assert "forward" in vars(host.unet)
    host.image()
    assert "forward" not in vars(host.unet)


def test_an_option_changed_during_a_batch_takes_effect_at_the_next_batch(host: Host) -> None:
    callbacks = host.module("modules.script_callbacks")
    callbacks.on_cfg_denoised(lambda _: host.opts.set("accel_enable", False))
    p = host.image(n_iter=2)
    assert [t.backend for t in host.service.clock.timings] == ["aoti", ""]
    assert "Accel" not in p.extra_generation_params
    assert torch.allclose(p.made[0], p.made[1], atol=1e-5)


def test_an_image_of_several_batches_is_marked(host: Host) -> None:
    p = host.image(n_iter=2, steps=3)
    assert p.extra_generation_params == {"Accel": "aoti"}
    assert [(len(t.times), t.backend) for t in host.service.clock.timings] == [(3, "aoti")] * 2


def test_the_flag_disables_acceleration(start: Start) -> None:
    host = start("--accel-disable")
    unet = host.load()
    assert torch.equal(host.call(), host.plain())
    host.image()
    assert host.status()["state"] == "off"
    assert "forward" not in vars(unet)
    assert all(n == 0 for n in host.counters().values())


def test_the_status_has_all_its_fields(host: Host) -> None:
    host.call()
    s = host.status()
    assert s.keys() == FIELDS
    assert s["counters"].keys() == COUNTERS
    assert (s["enabled"], s["dtype"], s["progress"]) == (True, "float32", None)
    assert s["artifact"].keys() == {"key", "bytes"}


def test_without_a_model_the_status_says_so(start: Start) -> None:
    host = start()
    assert (host.status()["state"], host.status()["reason"]) == (
        "fallback",
        "no model is loaded yet",
    )
    assert host.app.ask("POST", "/accel/v1/prebuild")[0] == 409


def test_a_model_that_cannot_be_accelerated_says_why(host: Host) -> None:
    """The model before it stays accelerated."""
    before = host.model
    unet = host.new_unet()
    unet.more = torch.nn.Linear(3, 3)
    host.module("modules.sd_models").load_model(unet)
    assert host.status()["state"] == "fallback"
    assert "more" in host.status()["reason"]
    assert torch.equal(host.image(steps=1).made[0], host.image(steps=1).made[0])
    assert "forward" not in vars(unet)
    host.module("modules.sd_models").model_data.set_sd_model(before)
    assert host.status()["state"] == "ready"


def test_reload_ui_accelerates_the_models_again(host: Host) -> None:
    """Scripts are loaded anew; models stay in memory."""
    unet, first = host.unet, host.call()
    host.reload_ui()
    assert torch.equal(host.call(), first)
    host.image()
    assert host.status()["state"] == "ready"
    host.opts.set("accel_enable", False)
    assert "forward" not in vars(unet)
