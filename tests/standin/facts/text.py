"""Facts: text encoders, and how the WebUI chooses and keeps models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from modules import sd_hijack, sd_hijack_clip, sd_models, sd_models_config


def text_encoders() -> dict[str, Any]:
    """The base of text encoders, and embeddings that take the place of a token's."""
    base = sd_hijack_clip.TextConditionalModel()
    names = ("chunk_length", "comma_token", "id_start", "id_end", "id_pad")
    layer = sd_hijack.TextualInversionEmbeddings(4, 2, padding_idx=0)
    tokens, vectors = torch.tensor([[1, 2, 3]]), torch.tensor([[7.0, 8.0]])
    with torch.no_grad():
        layer.weight.copy_(torch.arange(8.0).reshape(4, 2))
        sd_hijack.model_hijack.fixes = [[(0, SimpleNamespace(vec=vectors))]]
        out = [layer(tokens).tolist(), layer(tokens).tolist(), layer.wrapped(tokens).tolist()]
    return {
        "base": {name: getattr(base, name) for name in names},
        "hijack": base.hijack is sd_hijack.model_hijack is layer.embeddings,
        "embeddings": out,
    }


def models_in_memory() -> dict[str, Any]:
    """The list of loaded models, and the description of one of no known tensors."""
    data = sd_models.model_data
    before, kept = data.sd_model, list(data.loaded_sd_models)
    a, b = (SimpleNamespace(name=name, sd_checkpoint_info=None) for name in "ab")
    data.loaded_sd_models.clear()
    out: list[Any] = []
    try:
        for model in (a, b, a, None):
            data.set_sd_model(model)
            loaded = [m.name for m in data.loaded_sd_models]
            out.append([getattr(data.sd_model, "name", None), loaded])
    finally:
        data.loaded_sd_models[:] = kept
        data.sd_model = before
    default = sd_models_config.find_checkpoint_config({}, None) == sd_models_config.config_default
    return {"order": out, "default": default}
