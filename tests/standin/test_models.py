"""Models are loaded, discarded, kept, moved and changed while they are accelerated."""

from __future__ import annotations

import contextlib
import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from .conftest import Start
from .driver import drive
from .host import MIDDLE_QUERY, Host, counted, factors, left_behind, own_attributes


def _compilers() -> set[int]:
    """Return the ids of the processes that compile units; other tests may have left children."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "lib_accel.compile.backends.aoti.worker" in process.cmdline():
                found.add(process.pid)
    return found


def _wait(until: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_compiling_goes_on_for_the_next_model(start: Start, tmp_path: Path) -> None:
    """Twice an image, the WebUI discards the base to load the refiner, and the other way round."""
    host = start("--accel-store", str(tmp_path / "store"))
    first = host.load()
    _wait(_compilers)
    elapsed = host.status()["progress"]["elapsed_s"]
    first.to("meta")  # as the WebUI discards a model
    assert not any("accel" in name for name in vars(first))
    second = host.load(seed=1)
    host.opts.set("accel_graphs_mib", 64)  # has nothing to do with compiling
    host.image()
    status = host.status()
    assert status["state"] == "compiling"
    assert status["progress"]["elapsed_s"] >= elapsed, "begun anew"
    second.to("meta")
    mixed: Any = host.new_unet()
    mixed.out[2].half()
    host.module("modules.sd_models").load_model(mixed)
    assert host.status()["state"] == "fallback"
    assert _compilers(), "no model waits for them, and the next one may"
    host.opts.set("accel_enable", False)
    _wait(lambda: not _compilers())


def test_weights_loaded_in_place_are_used(host: Host) -> None:
    host.call()
    with counted(host, accelerated_calls=1, host_calls=0, compiles=0):
        host.unet.load_state_dict(host.new_unet(seed=3).state_dict())
        assert torch.allclose(host.call(), host.plain(seed=3), atol=1e-5)


def test_moved_weights_are_bound_again_once(host: Host) -> None:
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


def test_a_discarded_model_gives_its_weights_back(host: Host) -> None:
    """The WebUI moves it to the meta device before it loads the next; we must not hold weights."""
    old, model = host.unet, host.model
    weight = weakref.ref(next(old.parameters()))
    host.call()
    host.module("modules.sd_models").send_model_to_trash(model)
    gc.collect()
    assert weight() is None, "both models may not fit into memory"
    assert not {"forward", "_apply"} & vars(old).keys()
    assert not any("accel" in name for name in vars(old))
    assert host.status()["state"] == "fallback"
    host.load(seed=2)
    with counted(host, accelerated_calls=1):
        assert torch.allclose(host.call(), host.plain(seed=2), atol=1e-5)


def test_a_discarded_model_gives_its_memory_back_at_once(host: Host) -> None:
    """Without the garbage collector; also while it is driven, and the base weights of LoRAs too."""
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


def test_a_discarded_model_that_no_other_replaces(host: Host) -> None:
    weight = weakref.ref(next(host.unet.parameters()))
    model = host.model
    host.module("modules.sd_models").send_model_to_trash(model)
    host.module("modules.sd_models").model_data.set_sd_model(None)
    assert host.status()["reason"] == "no model is loaded yet"
    gc.collect()
    assert weight() is None


def test_several_models_stay_accelerated_in_memory(host: Host) -> None:
    """The WebUI calls no callback for one that it uses again. Switching off reaches them all."""
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


def test_a_model_without_a_callback_is_accelerated_before_its_first_image(host: Host) -> None:
    unet = host.new_unet(seed=6)
    models = host.module("modules.sd_models")
    models.model_data.set_sd_model(models.LatentDiffusion(unet))
    assert host.image().extra_generation_params["Accel"] == "aoti"


def test_a_model_without_a_callback_is_accelerated_between_batches(host: Host) -> None:
    """A job may switch to another checkpoint in memory, for example for hires fix."""
    models, unet = host.module("modules.sd_models"), host.new_unet(seed=6)
    other = models.LatentDiffusion(unet)
    host.module("modules.script_callbacks").on_cfg_denoised(
        lambda _: models.model_data.set_sd_model(other)
    )
    p = host.image(n_iter=2, steps=1)
    assert [t.backend for t in host.service.clock.timings] == ["aoti", "aoti"]
    assert not torch.allclose(p.made[0], p.made[1], atol=1e-3)


def test_a_second_callback_for_the_same_model_changes_nothing(host: Host) -> None:
    """The WebUI calls it after a change of the VAE."""
    first = host.call()
    with counted(host, binds=0, compiles=0, accelerated_calls=1):
        host.module("modules.script_callbacks").model_loaded_callback(host.model)
        assert torch.equal(host.call(), first)


def test_we_keep_no_model_alive(host: Host) -> None:
    old = weakref.ref(host.model.model.diffusion_model)
    host.call()
    host.load(seed=1)
    gc.collect()
    assert old() is None


def test_switching_to_another_backend_and_back(host: Host) -> None:
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


def test_a_flag_overrides_its_option(start: Start) -> None:
    host = start("--accel-backend", "eager")
    host.opts.data |= {"accel_backend": "aoti"}
    unet = host.load()
    assert host.status()["backend"] == "eager"
    host.opts.set("accel_backend", "jit")
    assert host.status()["backend"] == "eager"
    assert "forward" in vars(unet)


def test_a_stored_folder_of_compiled_code_is_ignored_and_named(
    start: Start,
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever can set options must not name a folder that native code is loaded from."""
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


def test_unloading_the_extension_leaves_the_unet_as_it_was(host: Host) -> None:
    host.call()
    before = own_attributes(host.new_unet())
    host.module("modules.script_callbacks").script_unloaded_callback()
    assert torch.equal(host.call(), host.plain())
    own = own_attributes(host.unet)
    assert {n: a.keys() - {"network_layer_name"} for n, a in own.items()} == {
        n: a.keys() for n, a in before.items()
    }
    assert left_behind(own, host.unet) == []


def test_nothing_is_loaded_from_a_folder_that_others_can_write(
    start: Start, own_store: Path
) -> None:
    """Images are made, and the status says why they are not accelerated."""
    own_store.chmod(0o777)
    host = start("--accel-store", str(own_store), "--accel-backend", "aoti")
    host.load()
    assert host.status()["backend"] == "eager"
    assert "is writable by others" in (host.status()["reason"] or "")
    with counted(host, accelerated_calls=0, compiles=0):
        assert torch.allclose(host.call(), host.plain(), atol=1e-5)
