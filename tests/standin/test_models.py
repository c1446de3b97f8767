"""Models come, go, and change under us."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import Start
from .driver import drive
from .host import MIDDLE_QUERY, Host, counted, factors, left_behind, own_attributes


def test_compiling_outlives_the_model_it_began_for(start: Start, tmp_path: Path) -> None:
    """The WebUI throws the base away to load the refiner, and back again, twice an image."""
    host = start("--accel-store", str(tmp_path / "store"))
    from lib_accel.runtime.accelerated import accelerated

    first = host.load()
    job = accelerated(first).engine.job
    assert job is not None
    first.to("meta")  # as the WebUI discards a model
    second = host.load(seed=1)
    assert accelerated(first) is None
    assert accelerated(second).engine.job is job
    host.opts.set("accel_graphs_mib", 64)
    host.image()
    assert accelerated(second).engine.job is job, "a setting that has nothing to do with compiling"
    second.to("meta")
    mixed: Any = host.new_unet()
    mixed.out[2].half()
    host.module("modules.sd_models").load_model(mixed)
    assert accelerated(mixed) is None
    assert not job.cancelled
    host.opts.set("accel_enable", False)
    assert job.cancelled, "off is off, though nobody waits for it"
    assert job.wait(60)


def test_weights_loaded_in_place(host: Host) -> None:
    host.call()
    with counted(host, accelerated_calls=1, host_calls=0, compiles=0):
        host.unet.load_state_dict(host.new_unet(seed=3).state_dict())
        assert torch.allclose(host.call(), host.plain(seed=3), atol=1e-5)


def test_weights_moved(host: Host) -> None:
    """New Parameter objects, new addresses: bound anew, once."""
    first = host.call()
    for module in host.unet.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(p.detach().clone())
    with counted(host, binds=1, accelerated_calls=2, host_calls=0):
        assert torch.equal(host.call(), first)
        host.call()
    for p in host.unet.parameters():
        p.data = p.data.clone()
    with counted(host, binds=1, accelerated_calls=1):
        assert torch.equal(host.call(), first)


def test_a_model_thrown_away_is_released(host: Host) -> None:
    """The WebUI empties it before it loads the next: what we shared must not keep the weights."""
    old, model = host.unet, host.model
    weight = weakref.ref(next(old.parameters()))
    host.call()
    host.module("modules.sd_models").send_model_to_trash(model)
    gc.collect()
    assert weight() is None, "before the next one is complete: both may not fit into memory"
    assert not {"forward", "_apply"} & vars(old).keys()
    assert not any("accel" in name for name in vars(old))
    assert host.status()["state"] == "fallback"
    host.load(seed=2)
    with counted(host, accelerated_calls=1):
        assert torch.allclose(host.call(), host.plain(seed=2), atol=1e-5)


def test_a_model_thrown_away_leaves_nothing(host: Host) -> None:
    """At once, not when Python's collector comes by; also what another extension drove, and the bases of its LoRAs."""
    drive(host.unet)
    host.want(host.network("lora", {MIDDLE_QUERY: factors()}))
    host.call()
    base = weakref.ref(host.unet.get_submodule(MIDDLE_QUERY).network_weights_backup)
    weights = [weakref.ref(p) for p in host.unet.parameters()]
    assert base() is not None
    gc.collect()
    gc.disable()
    try:
        host.module("modules.sd_models").send_model_to_trash(host.model)
        assert [ref() for ref in (base, *weights) if ref() is not None] == []
    finally:
        gc.enable()


def test_a_model_thrown_away_without_another(host: Host) -> None:
    weight = weakref.ref(next(host.unet.parameters()))
    model = host.model
    host.module("modules.sd_models").send_model_to_trash(model)
    host.module("modules.sd_models").model_data.set_sd_model(None)
    assert host.status()["reason"] == "no model is loaded yet"
    gc.collect()
    assert weight() is None


def test_several_models_in_memory(host: Host) -> None:
    """One that is picked up again announces itself to nobody; switching off reaches them all."""
    data = host.module("modules.sd_models").model_data
    a, first = host.model, host.call()
    host.load(seed=4)
    b, second = host.model, host.call()
    assert not torch.allclose(first, second, atol=1e-2)
    for model, out in ((a, first), (b, second), (a, first)):
        data.set_sd_model(model)
        with counted(host, accelerated_calls=1, host_calls=0, compiles=0, binds=0):
            assert torch.equal(host.call(), out)
    host.opts.set("accel_enable", False)
    assert all("forward" not in vars(m.model.diffusion_model) for m in (a, b))
    data.set_sd_model(b)
    assert torch.equal(host.call(), host.plain(seed=4))


def test_a_model_nobody_announced(host: Host) -> None:
    """Taken over before its first image."""
    unet = host.new_unet(seed=6)
    models = host.module("modules.sd_models")
    models.model_data.set_sd_model(models.LatentDiffusion(unet))
    assert host.image().extra_generation_params["Accel"] == "aoti"


def test_a_model_nobody_announced_between_batches(host: Host) -> None:
    """One kept in memory is picked up in the middle of a job (another checkpoint for hires fix): taken over for the next batch."""
    models, unet = host.module("modules.sd_models"), host.new_unet(seed=6)
    other = models.LatentDiffusion(unet)
    host.module("modules.script_callbacks").on_cfg_denoised(
        lambda _: models.model_data.set_sd_model(other)
    )
    p = host.image(n_iter=2, steps=1)
    assert [t.accelerated for t in host.service.clock.timings] == [True, True]
    assert not torch.allclose(p.made[0], p.made[1], atol=1e-3)


def test_the_same_model_announced_again(host: Host) -> None:
    """After a VAE change: nothing is made anew."""
    first = host.call()
    with counted(host, binds=0, compiles=0, accelerated_calls=1):
        host.module("modules.script_callbacks").model_loaded_callback(host.model)
        assert torch.equal(host.call(), first)


def test_a_model_goes_with_its_last_user(host: Host) -> None:
    """We hold no model alive."""
    old = weakref.ref(host.model.model.diffusion_model)
    host.call()
    host.load(seed=1)
    gc.collect()
    assert old() is None


def test_another_backend_and_back(host: Host) -> None:
    first = host.call()
    host.opts.set("accel_backend", "eager")
    assert (host.status()["state"], host.status()["backend"], host.status()["artifact"]) == (
        "eager",
        "eager",
        None,
    )
    with counted(host, accelerated_calls=0, host_calls=0):
        assert torch.allclose(host.call(), first, atol=1e-5)
    host.opts.set("accel_backend", "auto")
    assert host.status()["state"] == "ready"
    with counted(host, accelerated_calls=1, compiles=0):
        assert torch.equal(host.call(), first)


def test_flags_go_before_options(start: Start) -> None:
    host = start("--accel-backend", "eager")
    host.opts.data |= {"accel_backend": "aoti"}
    unet = host.load()
    assert host.status()["backend"] == "eager"
    host.opts.set("accel_backend", "jit")
    assert host.status()["backend"] == "eager"
    assert "forward" in vars(unet)


def test_the_folder_of_compiled_code_is_no_option(
    start: Start,
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever can set options must not be able to name a folder that native code is loaded from."""
    monkeypatch.setenv("ACCEL_STORE", str(tiny_store))
    host = start()
    host.module("modules.shared").cmd_opts.accel_store = None
    assert "accel_store" not in host.opts.data_labels
    host.opts.data["accel_store"] = str(tmp_path / "planted")
    host.reload_ui()
    host.load()
    assert host.module("lib_accel.host.webui").config().store == tiny_store
    assert host.status()["state"] == "ready"
    assert "accel_store" not in host.opts.data
    assert not (tmp_path / "planted").exists()
    assert capsys.readouterr().out.count("the stored setting accel_store") == 1


def test_unloading_the_extension(host: Host) -> None:
    """The WebUI's last word to a script; whoever is asked afterwards is the UNet itself."""
    host.call()
    before = own_attributes(host.new_unet())
    host.module("modules.script_callbacks").script_unloaded_callback()
    assert torch.equal(host.call(), host.plain())
    own = own_attributes(host.unet)
    assert {n: a.keys() - {"network_layer_name"} for n, a in own.items()} == {
        n: a.keys() for n, a in before.items()
    }
    assert left_behind(own, host.unet) == []


def test_a_folder_that_others_can_write(start: Start, own_store: Path) -> None:
    """Nothing is loaded from it, though the code lies there: images are made, and it says why."""
    own_store.chmod(0o777)
    host = start("--accel-store", str(own_store), "--accel-backend", "aoti")
    host.load()
    assert host.status()["backend"] == "eager"
    assert "is writable by others" in (host.status()["reason"] or "")
    with counted(host, accelerated_calls=0, compiles=0):
        assert torch.allclose(host.call(), host.plain(), atol=1e-5)
