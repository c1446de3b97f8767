# ruff: noqa: RUF001  Chinese punctuation
"""Checkpoints of Taiyi's kind with a random BERT, under the names that the published files have.

Published: https://huggingface.co/IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1 and
Taiyi-Stable-Diffusion-1B-Anime-Chinese-v0.1.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PROMPTS = (
    "铁马冰河入梦来，概念画，科幻，玄幻，3D",
    "1个女孩,绿眼,棒球帽,金色头发,闭嘴",
)
OTHER_TEXT = "长河落日圆, 4k壁纸 水墨画 广告 一只猫和狗（）：！。；飞流直下三千尺"
TOKENS = 21128
PREFIX = "cond_stage_model.transformer."


def write_vocabulary(file: Path) -> Path:
    """Write a vocabulary of the published length, with the characters of the texts above."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [f"##{c}" for c in characters if c.isalnum()]
    chinese = sorted({c for text in (*PROMPTS, OTHER_TEXT) for c in text if ord(c) > 127})
    words = ["[PAD]", *(f"[unused{n}]" for n in range(1, 100)), *special]
    words += [*characters, *pieces, *chinese, "cat", "girl"]
    words += [f"[filler{n}]" for n in range(TOKENS - len(words))]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(words) + "\n", encoding="utf-8", newline="\n")
    return file


@functools.cache
@torch.no_grad()
def random_bert(seed: int = 0) -> Any:
    """Return a `transformers.BertModel` of the published shape, whose layers all matter."""
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(vocab_size=TOKENS)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, p in bert.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if "LayerNorm" in name:  # the mean is not zero, by which the WebUI's emphasis divides
            p.copy_(noise * 0.05 + (1 if name.endswith("weight") else 0.05))
        else:
            p.copy_(noise * (0.02 if p.ndim == 1 else p.shape[1] ** -0.5))
    return bert


def text_encoder(seed: int = 0, position_ids: bool = True) -> dict[str, Tensor]:
    """Return the tensors of the text encoder of a checkpoint, by their names in the file."""
    tensors = {k: v for k, v in random_bert(seed).state_dict().items() if "position_ids" not in k}
    if position_ids:
        tensors["embeddings.position_ids"] = torch.arange(512)[None]
    return {PREFIX + k: v for k, v in tensors.items()}


def as_the_webui_reads(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names that modules/sd_models.py gives them."""
    renamed = {}
    for name, tensor in tensors.items():
        for part in ("embeddings.", "encoder."):
            if name.startswith(PREFIX + part):
                name = f"{PREFIX}text_model.{name[len(PREFIX) :]}"
        renamed[name] = tensor
    return renamed


def write_checkpoint(
    file: Path, like: Path, seed: int = 0, position_ids: bool = True, half: bool = False
) -> Path:
    """Write one with the UNet and VAE of an SD1 checkpoint: `.safetensors` or `.ckpt`."""
    tensors = {k: v for k, v in load_file(like).items() if not k.startswith("cond_stage_model.")}
    tensors |= text_encoder(seed, position_ids)
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:  # the WebUI reads no newer format
        torch.save({"state_dict": tensors}, file, _use_new_zipfile_serialization=False)
    beside = like.with_suffix(".yaml")  # of a UNet that is not of SD1's width
    if beside.exists():
        file.with_suffix(".yaml").write_bytes(beside.read_bytes())
    return file
