# ruff: noqa: RUF001  Chinese punctuation
"""Taiyi's text encoder against transformers' own, and which checkpoints are taken for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.errors import BadWeights

from ..taiyi_files import (
    OTHER_TEXT,
    PREFIX,
    PROMPTS,
    as_the_webui_reads,
    random_bert,
    text_encoder,
    write_vocabulary,
)
from .host import in_place

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vocabulary(tmp_path_factory.mktemp("taiyi") / "vocab.txt")


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    """The modules of lib_accel.host.taiyi in a stand-in, and the WebUI's that they work with."""
    import importlib

    with in_place():
        names = ("bert", "text_model")
        found = {n: importlib.import_module(f"lib_accel.host.taiyi.{n}") for n in names}
        for name in ("shared", "sd_hijack"):
            found[name] = importlib.import_module(f"modules.{name}")
        yield SimpleNamespace(**found, networks=importlib.import_module("networks"))


@pytest.fixture(scope="module")
def encoder(modules: SimpleNamespace, vocabulary: Path) -> Any:
    """A text model with the weights of `random_bert`, loaded as the WebUI does."""
    model = modules.text_model.TaiyiTextModel(str(vocabulary)).eval()
    named = as_the_webui_reads(text_encoder())
    tensors = {k.removeprefix("cond_stage_model."): v for k, v in named.items()}
    missing, _ = model.load_state_dict(tensors, strict=False)
    assert missing == []
    return model


@torch.no_grad()
def _plain(vocabulary: Path, text: str, layer: int = -1) -> tuple[list[int], Tensor]:
    """Return token ids and hidden states that transformers computes by itself."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(str(vocabulary), do_lower_case=True)
    ids = tokenizer(text, padding="max_length", max_length=77, truncation=True)["input_ids"]
    out = random_bert()(torch.tensor([ids]), output_hidden_states=True)
    return ids, out.hidden_states[layer][0]


@pytest.mark.parametrize("text", [*PROMPTS, OTHER_TEXT, "a CAT, 一只猫 café", "", "龘"])
def test_tokens_and_hidden_states_are_those_of_transformers(
    encoder: Any, vocabulary: Path, text: str
) -> None:
    ids, expected = _plain(vocabulary, text)
    own = encoder.tokenize([text])[0]
    assert [encoder.id_start, *own, encoder.id_end] == ids[: len(own) + 2]
    assert set(ids[len(own) + 2 :]) <= {encoder.id_pad}
    with torch.no_grad():
        assert torch.allclose(encoder([text])[0], expected, atol=1e-5)


def test_clip_skip_takes_an_earlier_layer(
    modules: SimpleNamespace, encoder: Any, vocabulary: Path
) -> None:
    for skip in (2, 12):
        modules.shared.opts.set("CLIP_stop_at_last_layers", skip)
        with torch.no_grad():
            found = encoder([PROMPTS[0]])[0]
        assert torch.allclose(found, _plain(vocabulary, PROMPTS[0], -skip)[1], atol=1e-5)
    modules.shared.opts.set("CLIP_stop_at_last_layers", 1)


def test_positions_count_from_zero_whatever_the_file_says(encoder: Any) -> None:
    name = "transformer.text_model.embeddings.position_ids"
    encoder.load_state_dict({name: torch.full((1, 512), 7.0)}, strict=False)
    ids = encoder.transformer["text_model"].embeddings.position_ids
    assert torch.equal(ids, torch.arange(512)[None])


def test_the_comma_is_the_half_width_one(encoder: Any) -> None:
    """It is where the WebUI breaks long prompts. With CLIP a full-width one is a letter too."""
    half, full = encoder.tokenize([",", "，"])
    assert [encoder.comma_token] == half != full


def test_an_embedding_takes_the_place_of_its_tokens(modules: SimpleNamespace, encoder: Any) -> None:
    with torch.no_grad():
        vectors = encoder.encode_embedding_init_text("水墨画", 2)
        assert vectors.shape == (2, 768)
        plain = encoder(["水墨"])
        modules.sd_hijack.model_hijack.fixes = [[(0, SimpleNamespace(vec=vectors))]]
        assert torch.equal(encoder(["猫狗"]), plain)
        assert not torch.equal(encoder(["猫狗"]), plain)


def test_medvram_gets_the_module_that_is_called(encoder: Any) -> None:
    called: list[Any] = []
    (module,) = encoder.medvram_modules()
    hook = module.register_forward_pre_hook(lambda m, _: called.append(m))
    with torch.no_grad():
        encoder(["猫"])
    hook.remove()
    assert called == [module]
    assert not {"model", "encode"} & set(dir(encoder)), "the WebUI would take it for another"


def test_half_precision_is_near_float32(encoder: Any) -> None:
    import copy

    try:
        torch.layer_norm(torch.zeros(1, 2).half(), (2,))
    except RuntimeError as missing:
        pytest.skip(f"NOT RUN: torch {torch.__version__} on a CPU: {missing}")
    with torch.no_grad():
        expected = encoder([PROMPTS[0]])
        found = copy.deepcopy(encoder).half()([PROMPTS[0]])
    assert found.dtype == torch.float16
    assert float((found.float() - expected).norm() / expected.norm()) < 5e-3


def test_a_lora_for_clip_is_named_once(
    modules: SimpleNamespace, encoder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    wanted = []
    for name, key, strength in (
        ("both", "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", 1.0),
        ("unused", "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", 0.0),
        ("unet", "lora_unet_mid_block_attentions_0_proj_in.alpha", 1.0),
    ):
        file = tmp_path / f"{name}.safetensors"
        save_file({key: torch.ones(1)}, file)
        disk = SimpleNamespace(filename=str(file))
        wanted.append(SimpleNamespace(name=name, network_on_disk=disk, te_multiplier=strength))
    modules.networks.loaded_networks[:] = wanted
    with torch.no_grad():
        encoder(["猫"])
        encoder(["狗"])
    modules.networks.loaded_networks.clear()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "both: the text-encoder part of this LoRA is skipped" in lines[0]


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_a_lora_whose_file_was_exchanged_since_does_not_end_the_image(
    encoder: Any, modules: SimpleNamespace, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "gone.safetensors"
    if content:
        file.write_bytes(content)
    disk = SimpleNamespace(filename=str(file))
    net = SimpleNamespace(name="gone", network_on_disk=disk, te_multiplier=1.0)
    modules.networks.loaded_networks[:] = [net]
    with torch.no_grad():
        encoder(["猫"])
    modules.networks.loaded_networks.clear()


# -- which checkpoints are taken


def _renamed(**changes: Tensor | None) -> dict[str, Tensor]:
    tensors = text_encoder() | {PREFIX + k.replace("__", "."): v for k, v in changes.items()}
    return as_the_webui_reads({k: v for k, v in tensors.items() if v is not None})


@pytest.mark.parametrize("position_ids", [True, False])
def test_a_whole_bert_passes(modules: SimpleNamespace, position_ids: bool) -> None:
    tensors = as_the_webui_reads(text_encoder(position_ids=position_ids))
    assert modules.bert.has_bert(tensors)
    modules.bert.check_bert("x.ckpt", tensors)


def test_clip_and_other_encoders_are_left_alone(modules: SimpleNamespace) -> None:
    for name in (
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
        "cond_stage_model.roberta.embeddings.word_embeddings.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "model.diffusion_model.out.2.weight",
    ):
        assert not modules.bert.has_bert({name: torch.zeros(1)}), name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"embeddings__word_embeddings__weight": torch.empty(30522, 768, device="meta")},
            "(1 tensors differ: cond_stage_model.transformer.embeddings.word_embeddings.weight "
            "has the shape [30522, 768]; expected [21128, 768])",
        ),
        (
            {"encoder__layer__3__attention__self__query__bias": None},
            "transformer.encoder.layer.3.attention.self.query.bias is missing",
        ),
        (
            {"encoder__layer__12__output__dense__bias": torch.zeros(768)},
            "transformer.encoder.layer.12.output.dense.bias [768] is unknown",
        ),
    ],
)
def test_a_damaged_or_unknown_bert_is_named(
    modules: SimpleNamespace, changes: dict[str, Any], expected: str
) -> None:
    tensors = _renamed(**changes)
    assert modules.bert.has_bert(tensors)
    with pytest.raises(BadWeights) as e:
        modules.bert.check_bert("x.ckpt", tensors)
    assert str(e.value).startswith("x.ckpt is not loaded: ")
    assert expected in str(e.value)


def test_a_bert_of_another_width_is_named_by_three_tensors(modules: SimpleNamespace) -> None:
    with torch.device("meta"):
        wide = {k: torch.empty(*v.shape[:-1], 1024) for k, v in text_encoder().items()}
    with pytest.raises(BadWeights) as e:
        modules.bert.check_bert("x.ckpt", as_the_webui_reads(wide))
    assert str(e.value).count("has the shape") == 3
    assert "(197 tensors differ" in str(e.value)
