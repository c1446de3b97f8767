"""The VAE of a loaded model: accelerated, left alone where somebody changed it, and undone."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .conftest import Start
from .host import Host, left_behind, own_attributes

LATENT = (1, 4, 16, 12)


@pytest.fixture
def host(start: Start) -> Host:
    host = start("--accel-backend", "eager")
    load(host)
    return host


def load(host: Host, dtype: torch.dtype = torch.float32) -> Any:
    """Load a model with a VAE, as the WebUI does; return the VAE."""
    torch.manual_seed(0)
    host.load()
    vae = host.module("ldm.vae").AutoencoderKL().eval().to(dtype)
    host.model.first_stage_model = vae
    host.module("modules.script_callbacks").model_loaded_callback(host.model)
    return vae


def plain(host: Host, vae: nn.Module) -> Any:
    """Return an equal VAE that was never accelerated."""
    other = host.module("ldm.vae").AutoencoderKL().eval().to(next(vae.parameters()).dtype)
    other.load_state_dict(vae.state_dict())
    return other


@torch.no_grad()
def both(host: Host, call: Any) -> tuple[Tensor, Tensor]:
    """Compute something with the loaded VAE and with an equal one that is not accelerated."""
    vae = host.model.first_stage_model
    return call(vae), call(plain(host, vae))


def rows(host: Host) -> Any:
    return host.status()["vae"]


def test_pictures_are_decoded_and_encoded_by_our_layers(host: Host):
    latent, image = torch.randn(LATENT), torch.randn(1, 3, 64, 72)
    for call in (lambda vae: vae.decode(latent), lambda vae: vae.encode(image)):
        ours, theirs = both(host, call)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    for row in rows(host).values():
        assert (row["state"], row["reason"], row["host_calls"]) == ("eager", None, 0)


def test_nothing_is_left_on_a_vae_when_acceleration_ends(host: Host):
    vae = host.module("ldm.vae").AutoencoderKL().eval()
    before = own_attributes(vae)
    host.model.first_stage_model = vae
    host.module("modules.script_callbacks").model_loaded_callback(host.model)
    assert "forward" in vars(vae.decoder)
    host.opts.set("accel_vae", False)
    assert left_behind(before, vae) == []
    assert {row["state"] for row in rows(host).values()} == {"off"}
    host.opts.set("accel_vae", True)
    assert "forward" in vars(vae.encoder)
    host.opts.set("accel_enable", False)
    assert left_behind(before, vae) == []


def test_a_changed_layer_runs_as_somebody_has_it(host: Host):
    attention, calls = host.model.first_stage_model.decoder.mid.attn_1, []
    attention.forward = lambda x: calls.append(x.shape) or 2 * x  # as HyperTile does
    with torch.no_grad():
        host.model.first_stage_model.decode(torch.ones(LATENT))
    assert len(calls) == 1
    row = rows(host)["decoder"]
    assert "1 layer is not accelerated: the forward of a AttnBlock was replaced" in row["reason"]
    assert row["host_calls"] == 0


def test_tiling_is_left_to_the_webui_with_one_reason(host: Host):
    vae = host.model.first_stage_model
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    with torch.no_grad():
        vae.decode(torch.ones(LATENT))
    row = rows(host)["decoder"]
    assert row["reason"] == "the VAE is not accelerated: tiling changes the padding of convolutions"
    assert row["host_calls"] == 1


def test_a_forward_of_another_extension_stays_and_drives_the_webuis_own_blocks(host: Host):
    decoder, calls = host.model.first_stage_model.decoder, []
    original = decoder.forward  # as tiled decoding keeps it

    def tiled(z: Tensor) -> Tensor:
        calls.append(z.shape)
        return original(z)

    decoder.forward = tiled
    host.image()
    assert calls
    assert decoder.forward is tiled
    assert rows(host)["decoder"]["state"] == "eager"


def test_a_tiled_decoder_is_named_once_as_the_reason(
    host: Host, capsys: pytest.CaptureFixture[str]
):
    host.model.first_stage_model.decoder.forward = Tiled()
    for _ in range(2):
        host.image()
    expected = f"another extension computes the VAE: {__name__}"
    assert rows(host)["decoder"]["reason"] == expected
    assert capsys.readouterr().out.count(expected) == 1
    del host.model.first_stage_model.decoder.forward
    host.image()
    assert rows(host)["decoder"]["reason"] is None


class Tiled:
    """A forward as tiled decoding sets it: an object that is called."""

    def __call__(self, z: Tensor) -> Tensor:
        return torch.zeros(1, 3, 8, 8)


def test_our_forward_of_before_does_not_come_back(host: Host):
    """Tiled decoding keeps it, and puts it back when it ends."""
    decoder = host.model.first_stage_model.decoder
    before = decoder.forward
    host.opts.set("accel_vae", False)
    host.opts.set("accel_vae", True)
    ours, calls = decoder.forward, rows(host)["decoder"]["host_calls"]
    decoder.forward = before
    with torch.no_grad():
        host.model.first_stage_model.decode(torch.ones(LATENT))
    assert "forward" not in vars(decoder)
    assert rows(host)["decoder"]["host_calls"] == calls
    host.image()
    assert decoder.forward is ours


def test_pictures_are_marked_by_whose_code_decoded_them(host: Host, monkeypatch: Any):
    """The layers of `eager` are no compiled code: the mark tells by the counter of its calls."""
    assert "Accel VAE" not in host.image().extra_generation_params
    engine = host.service.vaes.engines(host.model)[0]
    compute = engine.compute

    def counted(*given: Any) -> Tensor:
        engine.counters.accelerated_calls += 1
        return compute(*given)

    monkeypatch.setattr(engine, "compute", counted)
    p = host.image()
    assert p.extra_generation_params["Accel VAE"] == "eager"
    assert host.service.clock.timings[-1].vae == "eager"
    assert host.status()["phases"].keys() == {"prompt_s", "steps_s", "vae_s"}


def test_after_a_job_with_settings_of_its_own_the_vae_is_as_before(start: Start):
    host = start("--accel-no-compile")
    load(host)
    host.image(override_settings={"accel_backend": "eager"})  # as the last cell of a grid
    found = {each.config.backend for each in host.service.vaes.engines(host.model)}
    assert found == {host.service.current().engine.config.backend} == {"auto"}


def test_no_image_waits_for_the_successor_of_code_that_decodes(host: Host, monkeypatch: Any):
    host.opts.set("accel_while_compiling", "wait")
    vaes, asked = host.service.vaes, []
    successor = SimpleNamespace(wait=lambda _: asked.append(1) or True)
    for awaited in (None, successor):
        engine = SimpleNamespace(job=successor, awaited=awaited)
        monkeypatch.setattr(vaes, "engines", lambda _, engine=engine: [engine])
        host.service.before_images()
        assert bool(asked) is (awaited is not None)


def test_the_vae_is_told_of_in_line_and_tab(host: Host):
    host.model.first_stage_model.decoder.mid.attn_1.forward = lambda x: 2 * x
    host.image()
    everything = host.module("lib_accel.host.pages.tab")._everything()
    details = next(part for part in everything if "Details for a bug report" in str(part))
    assert "VAE decoder" in details
    assert "1 layer is not accelerated: the forward of a AttnBlock was replaced" in details
    assert "VAE encoder" in details


def test_a_vae_that_becomes_bfloat16_is_followed(host: Host):
    vae = host.model.first_stage_model
    vae.to(torch.bfloat16)  # the WebUI does so where a picture is NaN
    with torch.no_grad():
        out = vae.decode(torch.ones(LATENT, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    assert rows(host)["decoder"]["host_calls"] == 0


def test_a_discarded_vae_is_freed(host: Host):
    vae = weakref.ref(host.model.first_stage_model)
    host.model.first_stage_model.to("meta")
    assert "forward" not in vars(vae().decoder)
    host.model.first_stage_model = None
    gc.collect()
    assert vae() is None


def test_another_decoder_is_refused_and_works(host: Host):
    vae = host.module("ldm.vae").AutoencoderKL()
    vae.decoder.up[1].attn.append(host.module("ldm.vae").AttnBlock(64))
    host.model.first_stage_model = vae.eval()
    host.image()
    row = rows(host)["decoder"]
    assert row["state"] == "fallback"
    assert "another one than Stable Diffusion's" in row["reason"]
    assert rows(host)["encoder"]["state"] == "eager"
