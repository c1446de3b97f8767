"""The UNet taken over and given back: the same picture, and no trace."""

from __future__ import annotations

import pytest
import torch

from ..tiny import inputs
from .conftest import Start
from .host import Host, counted, left_behind, own_attributes

COUNTERS = {"compiles", "binds", "lora_merges", "accelerated_calls", "host_calls"}
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
    "counters",
    "control_models",
}


@pytest.mark.parametrize(
    ("batch", "height", "width", "length"), [(2, 16, 16, 77), (1, 16, 24, 154), (3, 9, 13, 77)]
)
def test_the_same_answer(host: Host, batch: int, height: int, width: int, length: int) -> None:
    given = inputs(batch=batch, height=height, width=width, length=length)
    with counted(host, accelerated_calls=1, host_calls=0, compiles=0):
        out = host.call(given)
    assert torch.allclose(out, host.plain(given), atol=1e-5)
    assert host.status()["reason"] is None


def test_the_answer_is_not_the_hosts_own_to_the_bit(host: Host) -> None:
    """Or the test above would pass with the host computing both."""
    assert not torch.equal(host.call(), host.plain())


def test_off_leaves_no_trace(start: Start) -> None:
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


def test_graphs_make_room_for_the_vae(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of an image, where video memory is short; there is none on a CPU, so both are played."""
    from lib_accel.host import webui
    from lib_accel.runtime.accelerated import accelerated

    released: list[int] = []
    engine = accelerated(host.unet).engine
    monkeypatch.setattr(
        engine, "release_graphs", lambda: released.append(engine.counters.accelerated_calls)
    )
    host.image(steps=4)
    assert released == [], "there is room"
    monkeypatch.setattr(webui, "free_memory", lambda: 1000)
    begun = engine.counters.accelerated_calls
    host.image(steps=4)
    assert [calls - begun for calls in released] == [3, 4]


def test_toggling(host: Host) -> None:
    """Takes effect at the next image, both ways; the counters never fall."""
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


def test_an_option_changed_in_the_middle_of_an_image(host: Host) -> None:
    """Weights must not be moved under it: it is made to its end, and the next one is as set."""
    callbacks = host.module("modules.script_callbacks")
    callbacks.on_cfg_denoised(lambda _: host.opts.set("accel_enable", False))
    host.image(steps=3)
    assert "forward" in vars(host.unet)
    host.image()
    assert "forward" not in vars(host.unet)


def test_an_option_changed_between_batches(host: Host) -> None:
    """Takes effect with the next batch of the same job."""
    callbacks = host.module("modules.script_callbacks")
    callbacks.on_cfg_denoised(lambda _: host.opts.set("accel_enable", False))
    p = host.image(n_iter=2)
    assert [t.accelerated for t in host.service.clock.timings] == [True, False]
    assert "Accel" not in p.extra_generation_params
    assert torch.allclose(p.made[0], p.made[1], atol=1e-5)


def test_an_image_of_several_batches_is_marked(host: Host) -> None:
    p = host.image(n_iter=2, steps=3)
    assert p.extra_generation_params == {"Accel": "aoti"}
    assert [(t.calls, t.accelerated) for t in host.service.clock.timings] == [(3, True)] * 2


def test_disabled_by_flag(start: Start) -> None:
    host = start("--accel-disable")
    unet = host.load()
    assert torch.equal(host.call(), host.plain())
    host.image()
    assert host.status()["state"] == "off"
    assert "forward" not in vars(unet)
    assert all(n == 0 for n in host.counters().values())


def test_status(host: Host) -> None:
    host.call()
    s = host.status()
    assert s.keys() == FIELDS
    assert s["counters"].keys() == COUNTERS
    assert (s["enabled"], s["dtype"], s["progress"]) == (True, "float32", None)
    assert s["artifact"].keys() == {"key", "bytes"}


def test_no_model(start: Start) -> None:
    host = start()
    assert (host.status()["state"], host.status()["reason"]) == (
        "fallback",
        "no model is loaded yet",
    )
    assert host.app.ask("POST", "/accel/v1/prebuild")[0] == 409


def test_another_kind_of_model(host: Host) -> None:
    """It says why, and the model before it keeps its code."""
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


def test_reload_ui(host: Host) -> None:
    """Scripts are loaded anew while models stay: taken over again, once."""
    unet, first = host.unet, host.call()
    host.reload_ui()
    assert torch.equal(host.call(), first)
    host.image()
    assert host.status()["state"] == "ready"
    host.opts.set("accel_enable", False)
    assert "forward" not in vars(unet)
