"""Taiyi's BERT as a text encoder of the WebUI, which cuts prompts into chunks of 77 tokens.

Chunks, weights, textual inversion and the token counter are the WebUI's own: it computes them for
every subclass of TextConditionalModel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from modules import sd_hijack, sd_hijack_clip, sd_models
from modules.shared import opts
from safetensors import safe_open
from torch import Tensor

from .. import webui
from .bert import new_bert

SUPPORTED = hasattr(sd_hijack_clip, "TextConditionalModel")
"""Whether the WebUI takes other text encoders than CLIP's: from 1.10 on."""

_Base: Any = sd_hijack_clip.TextConditionalModel if SUPPORTED else torch.nn.Module


class TaiyiTextModel(_Base):
    """What the WebUI makes as `cond_stage_model`; `vocabulary` names the file of tokens.

    It is made while the WebUI keeps new layers on the meta device and `to` does nothing. An
    attribute `model` would make it SD2's encoder, one `encode` would be called instead of it.
    """

    def __init__(self, vocabulary: str):
        from transformers import BertTokenizer

        super().__init__()
        self.tokenizer = BertTokenizer(vocabulary, do_lower_case=True)
        self.id_start: Any = self.tokenizer.cls_token_id
        self.id_end: Any = self.tokenizer.sep_token_id
        self.id_pad: Any = self.tokenizer.pad_token_id
        self.comma_token: Any = self.tokenizer.get_vocab().get(",")
        bert = new_bert()
        words = bert.embeddings.word_embeddings
        bert.embeddings.word_embeddings = sd_hijack.TextualInversionEmbeddings(
            words.num_embeddings, words.embedding_dim, padding_idx=words.padding_idx
        )
        # they count from 0, whatever a file says that was converted to 16 bits or merged
        bert.embeddings.register_buffer(
            "position_ids", bert.embeddings.position_ids, persistent=False
        )
        # the names under which the WebUI looks for tensors
        self.transformer = torch.nn.ModuleDict({"text_model": bert})
        self._told: set[str] = set()

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return `[B, 77 * chunks, 768]`. LoRAs whose text part does not apply are named once."""
        self._name_skipped_loras()
        return super().forward(texts)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without those that begin and end a chunk."""
        return self.tokenizer(list(texts), truncation=False, add_special_tokens=False)["input_ids"]

    def encode_with_transformers(self, tokens: Tensor) -> Tensor:
        """Return a layer's output `[B, T, 768]` for `tokens: [B, T]`: the last, or by clip skip.

        Each layer of a BERT ends with its LayerNorm, so there is none to add. Padding is attended
        to, as it was in training.
        """
        skip = opts.CLIP_stop_at_last_layers
        out = self.transformer["text_model"](
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            output_hidden_states=skip > 1,
        )
        return out.hidden_states[-skip] if skip > 1 else out.last_hidden_state

    def encode_embedding_init_text(self, init_text: str, nvpt: int) -> Tensor:
        """Return the embeddings of at most `nvpt` tokens of a text: `[tokens, 768]`."""
        embeddings: Any = self.transformer["text_model"].embeddings
        words = embeddings.word_embeddings
        ids = torch.tensor(self.tokenize([init_text])[0][:nvpt], dtype=torch.long)
        return words.wrapped(ids.to(words.weight.device))

    def medvram_modules(self) -> list[torch.nn.Module]:
        """Return what `--medvram` moves to the GPU while it computes."""
        return [self.transformer["text_model"]]

    def _name_skipped_loras(self) -> None:
        """Say once for each LoRA that its part for CLIP has no layers here."""
        extension = webui.host.lora_extension()
        for net in extension.loaded_networks if extension else ():
            if net.te_multiplier and net.name not in self._told:
                self._told.add(net.name)
                if _is_for_clip(net.network_on_disk.filename):
                    webui.say(
                        f"{net.name}: the text-encoder part of this LoRA is skipped, as it was "
                        "made for CLIP and this model has a BERT; the UNet part applies"
                    )


def _is_for_clip(file: str) -> bool:
    """Return whether a LoRA has a text-encoder part; False where its file was exchanged since."""
    try:
        if file.endswith(".safetensors"):  # its names can be had without its weights
            with safe_open(file, framework="pt") as header:
                names = list(header.keys())
        else:
            names = list(sd_models.read_state_dict(file, map_location="cpu"))
    except Exception:  # noqa: BLE001  whatever reading raises: the network itself is in memory
        return False
    return any(name.startswith("lora_te") for name in names)


def is_taiyi(sd_model: Any) -> bool:
    """Return whether a loaded model has this text encoder."""
    return isinstance(getattr(sd_model, "cond_stage_model", None), TaiyiTextModel)
