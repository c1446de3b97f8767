"""Taiyi's vocabulary, `vocab.txt`, which is not in a checkpoint: where it is looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import AccelError, printable
from .. import webui
from .bert import TOKENS

MODELS = Path(__file__).resolve().parents[3] / "models"
"""The extension's own folder for models."""

REPOSITORIES = (
    "IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1",
    "IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Anime-Chinese-v0.1",
)
"""Where the models were published; their vocabularies are the same."""
_FOLDER, _NAME = "tokenizer", "vocab.txt"
_SPECIAL = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
"""A tokenizer adds those that are missing, with numbers for which the model has no row."""
_MOST_BYTES = 2**20
"""Ten times what it has."""


def find_vocabulary(checkpoint: Path) -> Path:
    """Return the vocabulary for a checkpoint, after fetching it where this machine has none.

    Raises AccelError where it cannot be fetched, or where the file found is no such vocabulary.
    """
    places = (checkpoint.with_suffix(f".{_NAME}"), checkpoint.with_name(_NAME), MODELS / _NAME)
    found = next((place for place in places if place.is_file()), None) or _cached()
    return _checked(found or _fetched(checkpoint))


def _cached() -> Path | None:
    for repository in REPOSITORIES:
        try:
            return _from_hub(repository, local_files_only=True)
        except OSError:
            continue  # it is not in the cache
    return None


def _fetched(checkpoint: Path) -> Path:
    try:
        return _from_hub(REPOSITORIES[0], local_files_only=False)
    except OSError as e:
        # transformers says in many lines what a user can do with its own functions
        webui.say(printable(f"{_NAME} could not be fetched: {e}"))
        text = (
            f"{checkpoint.name} is not loaded: its vocabulary is missing and could not be "
            f"downloaded. Download https://huggingface.co/{REPOSITORIES[0]}/resolve/main/"
            f"{_FOLDER}/{_NAME} and save it as {checkpoint.with_name(_NAME)}"
        )
        raise AccelError(printable(text)) from e


def _from_hub(repository: str, local_files_only: bool) -> Path:
    """Return a file of Hugging Face's cache, as the WebUI gets the vocabulary of CLIP.

    Raises OSError where it cannot be had.
    """
    from transformers.utils.hub import cached_file

    found: Any = cached_file(
        repository, _NAME, subfolder=_FOLDER, local_files_only=local_files_only
    )
    return Path(found)


def _checked(vocabulary: Path) -> Path:
    try:
        if (size := vocabulary.stat().st_size) > _MOST_BYTES:
            text = (
                f"{vocabulary} has {size} bytes; Taiyi's vocabulary has about {_MOST_BYTES // 10}. "
                "Replace that file or delete it"
            )
            raise AccelError(printable(text))
        # not splitlines: some entries are line separators of Unicode
        words = vocabulary.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise AccelError(printable(f"the vocabulary {vocabulary} cannot be read: {e}")) from e
    if len(words) != TOKENS or not set(words) >= _SPECIAL:
        text = (
            f"{vocabulary} has {len(words)} lines; Taiyi's vocabulary has {TOKENS}, among them "
            f"{', '.join(sorted(_SPECIAL))}. Replace that file or delete it"
        )
        raise AccelError(printable(text))
    return vocabulary
