"""What of the WebUI is replaced so that Taiyi checkpoints load, when, and how it is undone."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from lib_accel.errors import AccelError

from ..taiyi_files import PREFIX, as_the_webui_reads, text_encoder, write_vocabulary
from .host import Host, in_place

pytest.importorskip("transformers")

CLIP = {f"{PREFIX}text_model.encoder.layers.0.mlp.fc1.bias": torch.zeros(1)}
STOCK = {"model": {"target": "LDM", "params": {"cond_stage_config": {"target": "CLIP"}}}}
TARGET = "lib_accel.host.taiyi.text_model.TaiyiTextModel"


class Webui(Host):
    """A stand-in whose models have text encoders, and a folder of checkpoints."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config, self.models = (
            self.module(f"modules.{n}") for n in ("sd_models_config", "sd_models")
        )
        self.hijack = self.module("modules.sd_hijack").model_hijack
        self.original, self.data = self.config.find_checkpoint_config, self.models.model_data
        super().__init__("--accel-store", str(folder), "--accel-no-compile")
        (folder / "v1.yaml").write_text(yaml.safe_dump(STOCK))
        self.config.config_default = str(folder / "v1.yaml")
        self.vocabulary = write_vocabulary(folder / "ckpt" / "vocab.txt")

    def find(self, tensors: dict[str, Tensor], name: str = "ckpt/x.safetensors") -> str:
        """Return what describes a checkpoint of these tensors."""
        info = SimpleNamespace(filename=str(self.folder / name))
        return self.config.find_checkpoint_config(tensors, info)

    def use(self, taiyi: bool, among: tuple[Any, ...] = ()) -> Any:
        """Make a new model the current one, with those of `among` kept in memory."""
        model = self.models.LatentDiffusion(self.new_unet())
        kind = self.module("lib_accel.host.taiyi.text_model").TaiyiTextModel
        model.cond_stage_model = kind.__new__(kind) if taiyi else nn.Module()
        nn.Module.__init__(model.cond_stage_model)
        self.hijack.hijack(model)
        self.data.loaded_sd_models[:] = among
        self.data.set_sd_model(model)
        return model

    @property
    def touched(self) -> list[str]:
        """What of the WebUI is replaced."""
        functions = {"find": self.config.find_checkpoint_config is not self.original}
        functions["set"] = "set_sd_model" in vars(self.data)
        return [name for name, replaced in functions.items() if replaced]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Webui]:
    with in_place():
        host = Webui(tmp_path)
        yield host
        host.close()


@pytest.fixture(scope="module")
def bert() -> dict[str, Tensor]:
    return as_the_webui_reads(text_encoder())


def test_only_what_recognises_a_checkpoint_is_replaced(host: Webui, bert: Any) -> None:
    assert host.touched == ["find"]
    assert host.find(CLIP) == host.config.config_default
    clip = host.use(taiyi=False)
    assert host.touched == ["find"]
    host.find(bert)
    assert host.touched == ["find", "set"]
    model = host.use(taiyi=True, among=(clip,))
    host.data.set_sd_model(clip)
    assert host.touched == ["find", "set"], "it is still in memory"
    host.data.loaded_sd_models.remove(model)
    host.data.set_sd_model(clip)
    assert host.touched == ["find"]


def test_switched_off_nothing_is_replaced(host: Webui, bert: Any) -> None:
    host.opts.set("accel_taiyi", False)
    assert host.touched == []
    assert host.find(bert) == host.config.config_default
    host.opts.set("accel_taiyi", True)
    host.opts.set("accel_enable", False)  # another setting
    assert host.find(bert) != host.config.config_default
    host.opts.set("accel_taiyi", "false")
    assert host.touched == ["set"]
    host.use(taiyi=False)
    assert host.touched == []


def test_unloading_undoes_everything_and_reloading_does_it_once(host: Webui, bert: Any) -> None:
    for _ in range(2):
        host.reload_ui()
        assert host.touched == ["find"]
    host.find(bert)
    model = host.use(taiyi=True)
    host.module("modules.script_callbacks").script_unloaded_callback()
    assert host.touched == []
    host.reload_ui()
    assert host.touched == ["find", "set"], "the model in memory is followed"
    host.data.loaded_sd_models.remove(model)
    host.use(taiyi=False)
    assert host.touched == ["find"]


def test_another_extension_that_replaces_ours_in_turn_keeps_its_place(
    host: Webui, bert: Any
) -> None:
    ours, calls = host.config.find_checkpoint_config, []

    def theirs(*args: Any) -> str:
        calls.append(args)
        return ours(*args)

    host.config.find_checkpoint_config = theirs
    for n in range(1, 3):
        host.reload_ui()
        assert host.find(bert) != host.config.config_default
        assert len(calls) == n
    host.module("modules.script_callbacks").script_unloaded_callback()
    assert host.config.find_checkpoint_config is theirs
    assert host.find(bert) == host.config.config_default


def test_a_description_is_the_webuis_own_with_our_text_encoder(host: Webui, bert: Any) -> None:
    found = host.find(bert)
    made = yaml.safe_load(Path(found).read_text(encoding="utf-8"))
    encoder = made["model"]["params"].pop("cond_stage_config")
    assert encoder == {"target": TARGET, "params": {"vocabulary": str(host.vocabulary)}}
    assert made == {"model": {"target": "LDM", "params": {}}}
    assert host.find(bert, "ckpt/y.ckpt") == found, "weights go into the same model"
    beside = STOCK | {"more": 1}
    (host.folder / "ckpt" / "z.yaml").write_text(yaml.safe_dump(beside))
    other = host.find(bert, "ckpt/z.ckpt")
    assert other != found
    assert yaml.safe_load(Path(other).read_text(encoding="utf-8"))["more"] == 1
    assert host.config.find_checkpoint_config(CLIP, None) == host.config.config_default


def _take(host: Webui, taken: Any) -> None:
    """Do what the WebUI does before it loads other weights into a model in memory."""
    host.data.loaded_sd_models.remove(taken)
    host.data.sd_model = taken
    host.hijack.undo_hijack(taken)


@pytest.mark.parametrize("several", [False, True])
def test_a_refused_checkpoint_leaves_the_loaded_models(
    host: Webui, bert: Any, several: bool
) -> None:
    first = host.use(taiyi=False)
    models = [host.use(taiyi=False, among=(first,)), first] if several else [first]
    _take(host, models[-1])
    damaged = {k: v for k, v in bert.items() if "layer.3." not in k}
    with pytest.raises(AccelError, match=r"x\.safetensors is not loaded") as e:
        host.find(damaged)
    assert host.data.sd_model is models[0]
    assert host.data.loaded_sd_models == models
    assert all(model.hijacked for model in models)
    assert host.hijack.clip is models[0].cond_stage_model
    assert host.hijack.layers == list(models[0].modules())
    line = host.module("lib_accel.host.pages.status_line").status_line()
    assert html.escape(str(e.value)) in line, "the status line says why"
    host.module("modules.scripts").call("before_process", None)
    assert "not loaded" not in host.module("lib_accel.host.pages.status_line").status_line()
    assert host.touched == ["find"]


def test_a_description_that_cannot_be_written_is_a_refusal(host: Webui, bert: Any) -> None:
    model = host.use(taiyi=False)
    _take(host, model)
    host.config.config_default = str(host.folder)  # which is no file
    with pytest.raises(OSError, match=re.escape(str(host.folder))):
        host.find(bert)
    assert host.data.sd_model is model
    assert model.hijacked


@pytest.mark.parametrize("odd", ["description", "tensor"])
def test_whatever_goes_wrong_leaves_the_loaded_models(host: Webui, bert: Any, odd: str) -> None:
    model = host.use(taiyi=False)
    _take(host, model)
    name = f"{PREFIX}text_model.encoder.layer.3.odd"
    if odd == "description":
        (host.folder / "ckpt" / "x.yaml").write_text("a: [")
    with pytest.raises(Exception, match=r"expected|no attribute"):
        host.find(bert | ({name: 3} if odd == "tensor" else {}))
    assert host.data.sd_model is model
    assert model.hijacked
    line = host.module("lib_accel.host.pages.status_line").status_line()
    assert "x.safetensors is not loaded" in line


@pytest.mark.parametrize(
    ("name", "written"),
    [("${oc.env:HOME}", r"\${oc.env:HOME}"), (r"a\\${b", r"a\\\\\${b"), ("$x{}", "$x{}")],
)
@pytest.mark.skipif(os.name != "posix", reason="names that Windows refuses")
def test_a_name_that_omegaconf_would_fill_in_is_kept(
    host: Webui, bert: Any, name: str, written: str
) -> None:
    write_vocabulary(host.folder / "ckpt" / f"{name}.vocab.txt")
    made = yaml.safe_load(Path(host.find(bert, f"ckpt/{name}.ckpt")).read_text(encoding="utf-8"))
    found = made["model"]["params"]["cond_stage_config"]["params"]["vocabulary"]
    assert found == str(host.folder / "ckpt" / f"{written}.vocab.txt")


def test_a_refusal_while_no_model_is_loaded_is_raised(host: Webui, bert: Any) -> None:
    discarded = host.use(taiyi=False)
    host.models.send_model_to_trash(discarded)
    host.data.sd_model = None
    with pytest.raises(AccelError, match="not Taiyi's BERT"):
        host.find({k: v for k, v in bert.items() if "layer.3." not in k})
    assert host.data.sd_model is None


def test_the_tokens_of_the_current_model_are_the_webuis(host: Webui, bert: Any) -> None:
    """The WebUI calls nothing where it uses a model in memory again."""
    read, net = host.hijack.embedding_db.read_for, host.network("lora", {})
    clip = host.use(taiyi=False)
    net.te_multiplier, net.unet_multiplier, net.dyn_dim = 0.3, 0.7, 4
    host.want(net)
    host.find(bert)
    taiyi = host.use(taiyi=True, among=(clip,))
    for model in (clip, taiyi, clip, clip):
        net.mtime = 5.0
        before = list(read)
        switched = model is not host.data.sd_model
        host.data.set_sd_model(model, already_loaded=True)
        assert host.hijack.clip is model.cond_stage_model
        assert read == before + [model] * switched
        assert net.mtime == (1 if switched else 5.0), "its file must be read once for each kind"
        assert host.networks.loaded_networks == [net]
    assert (net.te_multiplier, net.unet_multiplier, net.dyn_dim) == (0.3, 0.7, 4)
