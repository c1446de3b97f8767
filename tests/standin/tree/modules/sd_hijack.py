"""What the WebUI puts on a loaded model, how attention is computed, textual inversion."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

current_optimizer: Any = None


class EmbeddingDatabase:
    def __init__(self) -> None:
        self.read_for: list[Any] = []  # for tests: the current models when files were read

    def load_textual_inversion_embeddings(self, force_reload: bool = False) -> None:
        from modules import sd_models

        self.read_for.append(sd_models.model_data.sd_model)


class StableDiffusionModelHijack:
    def __init__(self) -> None:
        self.clip: Any = None
        self.layers: list[nn.Module] | None = None
        self.fixes: Any = None
        self.embedding_db = EmbeddingDatabase()

    def hijack(self, m: Any) -> None:
        m.hijacked = True  # the WebUI replaces parts of the model
        self.clip, self.layers = m.cond_stage_model, list(m.modules())

    def undo_hijack(self, m: Any) -> None:
        m.hijacked = False
        self.clip = self.layers = None


class TextualInversionEmbeddings(nn.Embedding):
    """Replaces the embeddings of the tokens that `fixes` of the hijack name."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        textual_inversion_key: str = "clip_l",
        **kwargs: Any,
    ):
        super().__init__(num_embeddings, embedding_dim, **kwargs)
        self.embeddings = model_hijack

    @property
    def wrapped(self) -> Any:
        return super().forward

    def forward(self, input_ids: Tensor) -> Tensor:
        fixes, self.embeddings.fixes = self.embeddings.fixes, None
        out = self.wrapped(input_ids)
        for row, fix in zip(out, fixes or (), strict=False):
            for offset, embedding in fix:
                vectors = embedding.vec.to(row)
                row[offset + 1 : offset + 1 + len(vectors)] = vectors
        return out


model_hijack = StableDiffusionModelHijack()
