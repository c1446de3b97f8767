# ruff: noqa: RUF001  Chinese punctuation
"""Taiyi checkpoints in a real WebUI: Chinese prompts, switching, LoRAs, embeddings, refusals."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_accel.tools.webui.client import Refused

from ..taiyi_files import (
    PREFIX,
    PROMPTS,
    as_the_webui_reads,
    random_bert,
    text_encoder,
    write_checkpoint,
    write_vocabulary,
)
from .conftest import HERE, Launch, served
from .host import DEFAULTS, Comparison, Server
from .pictures import MIN_DB, Pictures

CLIP_PROMPT = "a cat, 水墨 <lora:with-text:1>"
"""With an embedding of the folder, and a LoRA with a part for CLIP."""
LONG = "长河落日圆, " * 30
HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": "Latent"}


@pytest.fixture(scope="module")
def models(folder: Path, webui: Path) -> Path:
    """A folder of checkpoints: taiyiA (float32, safetensors), taiyiB (float16, ckpt), bad ones."""
    own, stock = folder / "ckpt" / "taiyi", webui / "models" / "Stable-diffusion"
    write_checkpoint(own / "taiyiA.safetensors", stock / "tinyA.safetensors")
    other = {"seed": 1, "position_ids": False, "half": True}
    write_checkpoint(own / "taiyiB.ckpt", stock / "tinyB.safetensors", **other)
    write_vocabulary(own / "vocab.txt")
    (own / "wordless").mkdir()
    (own / "wordless" / "wordless.safetensors").symlink_to(own / "taiyiA.safetensors")
    damaged = as_the_webui_reads(text_encoder())
    del damaged[f"{PREFIX}text_model.encoder.layer.3.output.dense.bias"]
    wide = f"{PREFIX}text_model.embeddings.token_type_embeddings.weight"
    save_file(damaged | {wide: torch.zeros(2, 1024)}, own / "damaged.safetensors")
    (folder / "embeddings").mkdir()
    vectors = torch.randn(2, 768, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, folder / "embeddings" / "水墨.safetensors")
    return own


@pytest.fixture(scope="module")
def own(launch: Launch, models: Path, folder: Path) -> Server:
    """A server with these checkpoints."""
    flags = ("--embeddings-dir", str(folder / "embeddings"))
    server = launch(*flags, others=[HERE / "taiyi_probe"])
    server.options(**DEFAULTS)
    server.wait_ready()
    return server


def _ask(server: Server, what: str, text: str = "") -> Any:
    return server.get(f"/taiyi-probe/{what}?{urllib.parse.urlencode({'text': text})}")


def _served(server: Server, name: str, **payload: Any) -> Comparison:
    return served(server, f"Taiyi, {name}", **payload)


def test_nothing_is_replaced_but_what_recognises_a_checkpoint(own: Server) -> None:
    ours, stock = "lib_accel.host.taiyi.hooks", "modules.sd_models"
    assert _ask(own, "replaced") == [ours, stock]
    own.options(accel_taiyi=False)
    assert _ask(own, "replaced") == ["modules.sd_models_config", stock]
    own.options(accel_taiyi=True)
    own.use("taiyiA")
    assert _ask(own, "replaced") == [ours, ours]
    own.use("tinyA")
    assert _ask(own, "replaced") == [ours, stock]


@pytest.mark.parametrize(("model", "seed"), [("taiyiA", 0), ("taiyiB", 1)])
def test_hidden_states_are_those_of_transformers(
    own: Server, models: Path, model: str, seed: int
) -> None:
    from transformers import BertTokenizer

    own.use(model)
    tokenizer = BertTokenizer(str(models / "vocab.txt"), do_lower_case=True)
    bert = random_bert(seed)
    exact = {k: v.half().float() for k, v in bert.state_dict().items() if v.is_floating_point()}
    if model == "taiyiB":
        bert.load_state_dict(exact, strict=False)
    for text in PROMPTS:
        ids = tokenizer(text, padding="max_length", max_length=77)["input_ids"]
        found = _ask(own, "encoded", text)
        with torch.no_grad():
            expected = bert(torch.tensor([ids])).last_hidden_state[0]
        assert torch.allclose(torch.tensor(found["states"]), expected, atol=2e-5)
        assert found["tokens"][0][: ids.index(0)] == ids[: ids.index(0)]


@pytest.mark.parametrize("model", ["taiyiA", "taiyiB"])
def test_chinese_prompts_are_accelerated(own: Server, model: str) -> None:
    own.use(model)
    first, second = (_served(own, f"{model}: {text}", prompt=text) for text in PROMPTS)
    assert first.on.decibels(second.on) < 40
    assert first.on.decibels(own.make(prompt="")) < 40
    assert PROMPTS[0] in first.on.infotexts[0]
    repeated = own.post("/sdapi/v1/txt2img", {"infotext": first.on.infotexts[0]})
    assert Pictures.decode(repeated["images"], [], 0).same(first.on)


@pytest.mark.parametrize(
    ("name", "payload", "settings"),
    [
        ("weight", {"prompt": f"({PROMPTS[0]}:1.3), [水墨画]"}, {}),
        ("BREAK", {"prompt": f"{PROMPTS[0]} BREAK 一只猫"}, {}),
        ("AND", {"prompt": "一只猫 AND 狗 :0.7"}, {}),
        ("editing", {"prompt": "一只[猫:狗:0.5]", "steps": 4}, {}),
        ("long", {"prompt": LONG + PROMPTS[0], "negative_prompt": "广告, ，, ！"}, {}),
        ("clip skip", {"prompt": PROMPTS[0]}, {"CLIP_stop_at_last_layers": 2}),
        ("hires prompt", {"prompt": "猫", **HIRES, "hr_prompt": "狗"}, {}),
        ("hires, CLIP", {"prompt": "猫", **HIRES, "hr_checkpoint_name": "tinyB"}, {}),
        ("refined by CLIP", {"prompt": "猫", "refiner_checkpoint": "tinyB"}, {}),
        ("embedding", {"prompt": "一只猫, 水墨"}, {}),
        ("LoRA", {"prompt": "一只猫 <lora:with-text:1>"}, {}),
    ],
)
def test_what_prompts_can_do(
    own: Server, name: str, payload: dict[str, Any], settings: dict[str, Any]
) -> None:
    own.use("taiyiA")
    own.options(**settings)
    if "refiner_checkpoint" in payload:
        payload = payload | {"refiner_switch_at": 0.5, "steps": 4}
    made = _served(own, name, **payload)
    own.options(**DEFAULTS)
    own.use("taiyiA")
    plain = {"prompt": "一只猫", "negative_prompt": "", "steps": 3}
    plain |= {k: v for k, v in payload.items() if k in ("steps", *HIRES)}
    if name == "clip skip":
        plain["prompt"] = PROMPTS[0]
    assert not made.on.same(own.make(**plain))
    if name == "embedding":
        assert "TI hashes: " in made.off.infotexts[0]  # later the WebUI has it from its cache


def test_clip_refined_by_taiyi(own: Server) -> None:
    own.use("tinyA")
    payload = {"prompt": "一只猫", "refiner_checkpoint": "taiyiA", "refiner_switch_at": 0.5}
    _served(own, "CLIP refined", **payload, steps=4)


def test_a_lora_says_once_that_its_text_part_is_skipped(own: Server) -> None:
    own.use("tinyA")
    own.use("taiyiA")
    before = own.console().count("the text-encoder part of this LoRA is skipped")
    for weight in (1, 0.5):
        own.make(prompt=f"一只猫 <lora:with-text:{weight}> <lora:loraA:1>")
    lines = own.console().count("the text-encoder part of this LoRA is skipped")
    assert lines == before + 1
    assert "with-text: the text-encoder part" in own.console()


def test_chunks_and_the_token_counter_are_the_webuis(own: Server) -> None:
    own.use("taiyiA")
    assert ">5/75<" in _ask(own, "counted", "一只猫, (狗:1.2)")
    assert "/150<" in _ask(own, "counted", "长河落日圆, " * 15 + "一只猫")
    found = _ask(own, "encoded", "猫 BREAK 狗")
    assert [len(chunk) for chunk in found["tokens"]] == [77, 77]
    assert len(found["states"]) == 154
    own.use("tinyA")
    assert ">4/75<" in _ask(own, "counted", "a photo of cats")


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_clip_pictures_are_the_same_before_and_after(own: Server, kept: int) -> None:
    own.options(sd_checkpoints_limit=kept)
    own.use("tinyA")
    clip, plain, count = own.make(prompt=CLIP_PROMPT), own.make(), _ask(own, "counted", PROMPTS[0])
    ids = {"tinyA": _ask(own, "embeddings")["水墨"]}
    own.use("taiyiA")
    taiyi = own.make(prompt=CLIP_PROMPT)
    assert taiyi.decibels(clip) < 40
    ids["taiyiA"] = ids["taiyiB"] = _ask(own, "embeddings")["水墨"]
    assert ids["taiyiA"] != ids["tinyA"]
    made = {"tinyA": clip, "taiyiA": taiyi}
    for model in ("tinyA", "taiyiA", "taiyiB", "tinyA"):
        own.use(model)
        assert _ask(own, "embeddings")["水墨"] == ids[model]
        assert _ask(own, "encoded", "水墨")["tokens"][0][1:3] == [0, 0], "its embedding is not used"
        assert model not in made or own.make(prompt=CLIP_PROMPT).same(made[model])
        assert (_ask(own, "counted", PROMPTS[0]) == count) == (model == "tinyA")
    assert own.make().same(plain)
    own.options(**DEFAULTS)
    own.use("tinyB")
    own.use("tinyA")


def test_a_refiner_in_memory_gets_all_of_a_lora(own: Server) -> None:
    """CLIP computes then before the next job lets the Lora extension look at its files."""
    own.options(sd_checkpoints_limit=2)
    own.use("tinyA")
    first = own.make(prompt=CLIP_PROMPT)
    without = own.make(prompt=CLIP_PROMPT.replace(":1>", ":0:1>"))
    assert first.decibels(without) < MIN_DB, "the part for CLIP must matter"
    own.make()
    own.use("taiyiA")
    refined = {"refiner_checkpoint": "tinyA", "refiner_switch_at": 0.5, "steps": 4}
    own.make(prompt=CLIP_PROMPT, **refined)
    own.use("tinyA")
    assert own.make(prompt=CLIP_PROMPT).same(first)
    own.options(**DEFAULTS)


def test_one_request_may_choose_it(own: Server) -> None:
    own.use("taiyiA")
    expected = own.make(prompt=PROMPTS[1])
    own.use("tinyA")
    chosen = {"override_settings": {"sd_model_checkpoint": "taiyiA"}}
    assert own.make(prompt=PROMPTS[1], **chosen).same(expected)
    assert not own.make(prompt=PROMPTS[1]).same(expected)


def test_unloaded_and_loaded_again(own: Server) -> None:
    own.use("taiyiA")
    first = own.make(prompt=PROMPTS[0])
    own.post("/sdapi/v1/unload-checkpoint")
    own.post("/sdapi/v1/reload-checkpoint")
    assert own.make(prompt=PROMPTS[0]).same(first)


# -- what is refused


@pytest.mark.parametrize("kept", [1, 2])
@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("wordless", "its vocabulary is missing and could not be downloaded. Download https://"),
        ("damaged", "token_type_embeddings.weight has the shape [2, 1024]; expected [2, 768]"),
    ],
)
def test_a_refused_one_leaves_the_loaded_model(
    own: Server, model: str, sentence: str, kept: int
) -> None:
    own.options(sd_checkpoints_limit=kept)
    own.use("tinyB")
    own.use("tinyA")
    first, memory = own.make(), _ask(own, "memory")
    title = own.get("/sdapi/v1/options")["sd_model_checkpoint"]
    before = own.console().count(sentence)
    own.options(sd_model_checkpoint=model)
    assert own.console().count(sentence) > before
    assert own.get("/sdapi/v1/options")["sd_model_checkpoint"] == title
    assert _ask(own, "memory") == memory
    again = own.make()
    assert again.same(first)
    assert again.served
    with pytest.raises(Refused) as e:
        own.make(override_settings={"sd_model_checkpoint": model})
    assert "is not loaded" in str(e.value)
    assert own.make().same(first)
    own.options(**DEFAULTS)
    own.use("tinyB")


def test_medvram_and_switched_off(own: Server, launch: Launch) -> None:
    own.use("taiyiA")
    expected = own.make(prompt=PROMPTS[0])
    own.stop()
    # the last flag: the WebUI would fetch CLIP for a file without it
    flags = ("--medvram", "--do-not-download-clip")
    server = launch(*flags, others=[HERE / "taiyi_probe"])
    server.use("taiyiA")
    assert _ask(server, "encoder") == "TaiyiTextModel"
    assert _served(server, "medvram", prompt=PROMPTS[0]).on.same(expected)
    server.options(accel_taiyi=False)
    server.use("tinyA")
    server.use("taiyiB")
    assert _ask(server, "encoder") == "FrozenCLIPEmbedderWithCustomWords"
    server.options(accel_taiyi=True)
    server.use("taiyiA")
    assert server.make(prompt=PROMPTS[0]).same(expected)
    server.stop()
