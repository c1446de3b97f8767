"""A store that machines share: what it is named by, and fetching beside the loading of a model."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file

from lib_accel.model.random_weights import random_weights
from lib_accel.model.vae.network import DECODER, ENCODER, Half

from .. import tiny
from ..store.servers import fleet_key, no_answer, published, web_server
from ..threads import one_thread  # noqa: F401  used by every test
from ..tiny import TINY
from .host import Host, in_place


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return published(tmp_path, units=1)


def test_fetching_begins_before_a_model_is_there(
    there: Path, packaging: None, monkeypatch: pytest.MonkeyPatch
):
    """The configured checkpoint's header says what to fetch; another one's would be needless."""
    folder = there.parent
    monkeypatch.setenv("ACCEL_STORE", str(folder / "cache"))
    made = random_weights(TINY, tiny.torch.float32, seed=0)
    unet = {f"model.diffusion_model.{name}": p.data for name, p in made.items()}
    vae = {
        f"first_stage_model.{kind}.{name}": tiny.torch.zeros(shape)
        for kind in (DECODER, ENCODER)
        for name, shape in Half.preset(kind, 32).shapes().items()
    }
    save_file({**unet, **vae}, folder / "m.safetensors")
    with in_place(), web_server(there) as url:
        host = Host("--accel-disable")
        models, options = host.module("modules.sd_models"), host.opts.data
        models.checkpoint_aliases["m"] = SimpleNamespace(filename=str(folder / "m.safetensors"))
        models.checkpoints_list["other"] = SimpleNamespace(filename=str(folder / "none"))
        options["sd_model_checkpoint"] = "m"
        flags = host.module("modules.shared").cmd_opts
        flags.accel_disable, flags.accel_store = False, url
        flags.accel_store_key, flags.no_half = str(fleet_key(folder)), True
        host.reload_ui()
        until = time.monotonic() + 60
        while len(host.service._session._fetches) < 3:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert host.model is None
        unet_s, *vae_s = host.service._session._fetches.values()
        assert (unet_s.wait(10), unet_s.fetched, unet_s.problem) == (True, 1, None)
        assert [job.target.name for job in vae_s] == ["VAE decoder", "VAE encoder"]
        assert (folder / "cache" / tiny.target().keys[tiny.target().units[0]]).is_dir()
        host.close()


def test_a_checkpoint_that_cannot_be_read_costs_nothing(there: Path, capfd):
    with in_place():
        host = Host("--accel-store", there.as_uri(), "--accel-store-key", "/none")
        listed = host.module("modules.sd_models").checkpoints_list
        for name in ("none", "m.ckpt"):
            (there.parent / "m.ckpt").write_bytes(b"x" * 100)
            listed["m"] = SimpleNamespace(filename=str(there.parent / name))
            host.reload_ui()
        time.sleep(0.1)
        assert host.service._session._fetches == {}
        host.close()
    assert "Traceback" not in capfd.readouterr().err


def test_no_image_waits_for_a_shared_store_that_does_not_answer(
    there: Path, packaging: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCEL_STORE", str(there.parent / "cache"))
    key = str(fleet_key(there.parent))
    with in_place(), web_server(there, no_answer) as url:
        host = Host("--accel-store", url, "--accel-store-key", key, "--accel-backend", "aoti")
        host.load()
        began = time.monotonic()
        status = host.status()
        assert (status["state"], status["backend"]) == ("compiling", "aoti")
        assert status["progress"]["stage"] in ("starting", f"fetching compiled code from {url}")
        host.image()
        host.call()
        assert time.monotonic() - began < 1.5
        assert host.status()["state"] == "compiling"
        host.close()


def test_seconds_that_mean_nothing_are_none():
    """The flag takes `nan`, which is neither more nor less than any number."""
    for typed, expected in (("nan", 0.0), ("-1", 0.0), ("2.5", 2.5)):
        with in_place():
            host = Host("--accel-disable")
            host.module("modules.shared").cmd_opts.accel_fetch_seconds = float(typed)
            assert host.module("lib_accel.host.webui").config().fetch_s == expected
            host.close()


def test_who_trusts_nobody_is_told(there: Path, capsys):
    with in_place():
        Host("--accel-store", there.as_uri()).close()
    said = capsys.readouterr().out
    assert f"code from {there.as_uri()} is refused: nobody is trusted to sign it" in said
    with in_place():
        key = str(fleet_key(there.parent))
        Host("--accel-store", there.as_uri(), "--accel-store-key", key).close()
    assert "nobody is trusted" not in capsys.readouterr().out


def test_who_shows_the_password_of_the_store_is_told(
    there: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    """The WebUI's `/internal/sysinfo` shows the command line, and asks for no login."""
    key, url = str(fleet_key(there.parent)), "https://me:secret@127.0.0.1:9/x"
    with in_place():
        Host("--accel-store", url, "--accel-store-key", key).close()
    said = capsys.readouterr().out
    assert "can read the password in --accel-store" in said
    assert "secret" not in said
    monkeypatch.setenv("ACCEL_STORE", url)
    with in_place():
        Host("--accel-store-key", key).close()
    assert "can read the password" not in capsys.readouterr().out


def test_no_option_names_a_store_or_a_key():
    """Whoever can set options could have planted code run."""
    with in_place():
        host = Host("--accel-disable")
        names = host.module("lib_accel.host.options").OPTIONS
        host.close()
    words = ("remote", "url", "key", "trusted", "store")
    assert [n for n in names if any(word in n for word in words)] == ["accel_store_mib"]
