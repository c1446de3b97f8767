"""Which checkpoints hold Taiyi's BERT, known by the names and shapes of its tensors.

The WebUI has renamed the tensors by then: it puts `text_model.` before the names that it takes for
CLIP's. The pooler, which images do not need, keeps its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import BadWeights, printable

TOKENS = 21128
"""The lines of the vocabulary, and the rows of the word embeddings."""

_PREFIX = "cond_stage_model.transformer.text_model."
_PREFIX_IN_FILE = "cond_stage_model.transformer."
_BERT = ("embeddings.word_embeddings.", "embeddings.token_type_embeddings.", "encoder.layer.")
"""How names begin that a BERT has and CLIP has not."""
_NOT_NEEDED = ("embeddings.position_ids", "embeddings.token_type_ids", "pooler.")
_NAMED = 3
"""How many tensors an error names."""


def new_bert() -> Any:
    """Return a `transformers.BertModel` of Taiyi's shape, with random weights."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=TOKENS), add_pooling_layer=False)


def has_bert(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether the text encoder of a checkpoint is a BERT, of any shape, damaged or not."""
    return any(name.startswith(_BERT) for name in _text_encoder(state_dict))


def check_bert(checkpoint: str, state_dict: Mapping[str, Tensor]) -> None:
    """Let Taiyi's BERT pass.

    Raises BadWeights where tensors are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        expected = {k: list(v.shape) for k, v in new_bert().state_dict().items()}
    found = {k: list(v.shape) for k, v in _text_encoder(state_dict).items()}
    problems = [
        f"{_PREFIX_IN_FILE}{name} is missing"
        if name not in found
        else f"{_PREFIX_IN_FILE}{name} has the shape {found[name]}; expected {shape}"
        for name, shape in expected.items()
        if not name.startswith(_NOT_NEEDED) and found.get(name) != shape
    ]
    problems += [
        f"{_PREFIX_IN_FILE}{name} {shape} is unknown"
        for name, shape in found.items()
        if name not in expected and not name.startswith(_NOT_NEEDED)
    ]
    if problems:
        named = "; ".join(problems[:_NAMED])
        text = (
            f"{checkpoint} is not loaded: its text encoder is not Taiyi's BERT "
            f"({len(problems)} tensors differ: {named}). If it should be, download it again."
        )
        raise BadWeights(printable(text))


def _text_encoder(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(_PREFIX) :]: v for k, v in state_dict.items() if k.startswith(_PREFIX)}
