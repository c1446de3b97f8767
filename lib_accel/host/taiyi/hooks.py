"""The two functions of the WebUI that are replaced so that Taiyi checkpoints load, and their undo.

`find_checkpoint_config` stands while the setting is on: nothing else of the WebUI sees the tensors
before a model is made for them. `set_sd_model` stands only while such a model is in memory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from modules import sd_hijack, sd_models, sd_models_config, shared

from ...errors import AccelError, printable
from ...store.private_folder import private_folder
from .. import webui
from .bert import check_bert, has_bert
from .text_model import SUPPORTED, TaiyiTextModel, is_taiyi
from .vocabulary import find_vocabulary


class Replacement:
    """A function of the WebUI that ours stands in for until `undo`.

    `function` gets the original and its arguments. Where somebody else has replaced ours in turn,
    it stays below theirs after `undo` and only calls the original.
    """

    def __init__(self, owner: Any, name: str, function: Callable[..., Any]):
        self._owner, self._name, self._active = owner, name, True
        self._before = vars(owner).get(name)  # None: inherited
        original = getattr(owner, name)

        def ours(*args: Any, **kwargs: Any) -> Any:
            if self._active:
                return function(original, *args, **kwargs)
            return original(*args, **kwargs)

        self._ours = ours
        setattr(owner, name, ours)

    def undo(self) -> None:
        """Put back what was there."""
        self._active = False
        if vars(self._owner).get(self._name) is not self._ours:
            return
        if self._before is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._before)


class Taiyi:
    """Recognises Taiyi checkpoints and follows their models. There is one."""

    def __init__(self) -> None:
        self.refused: str | None = None  # why the last checkpoint was, until the next image
        self._finding: Replacement | None = None
        self._following: Replacement | None = None
        self._is_current = False  # whether the tables of the WebUI are those of a Taiyi model

    def register(self) -> None:
        """Follow the setting. A model that is in memory is followed in any case."""
        option = shared.opts.data_labels["accel_taiyi"]
        mend = option.onchange or (lambda: None)
        option.onchange = lambda: (mend(), self.option_changed())
        self.option_changed()
        if any(map(is_taiyi, _in_memory())):
            self._follow(is_taiyi(sd_models.model_data.sd_model))

    def option_changed(self) -> None:
        """Recognise checkpoints from now on, or no longer. Models in memory are left alone."""
        wanted = SUPPORTED and webui.option("accel_taiyi")
        if wanted and self._finding is None:
            self._finding = Replacement(sd_models_config, "find_checkpoint_config", self._find)
        elif not wanted and self._finding is not None:
            self._finding.undo()
            self._finding = None

    def remove(self) -> None:
        """Undo everything: the extension is being unloaded. Models in memory go on."""
        for replacement in (self._finding, self._following):
            if replacement is not None:
                replacement.undo()
        self._finding = self._following = None

    # -- a checkpoint is being loaded

    def _find(self, original: Callable[..., str], state_dict: Any, info: Any) -> str:
        """Return the file that describes a model to the WebUI; for Taiyi, one of ours.

        Raises AccelError for a damaged or unknown BERT, and without a vocabulary; OSError where
        the file cannot be written; and whatever a file of the wrong kind leads to.
        """
        described = original(state_dict, info)
        if not has_bert(state_dict):
            return described
        checkpoint = Path(info.filename if info is not None else "checkpoint")
        try:
            check_bert(checkpoint.name, state_dict)
            ours = _describe(described, find_vocabulary(checkpoint))
        except Exception as e:
            _restore_models()
            known = isinstance(e, (AccelError, OSError))
            what = f"{checkpoint.name} is not loaded: {type(e).__name__}: {e}"
            self.refused = str(e) if known else printable(what)
            raise
        self._follow(is_current=False)
        return ours

    # -- a model has become the current one

    def _follow(self, is_current: bool) -> None:
        if self._following is None:
            self._is_current = is_current
            self._following = Replacement(sd_models.model_data, "set_sd_model", self._set)

    def _set(self, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Give the WebUI's tables the tokens of the model that becomes the current one.

        The WebUI does not where it uses a model in memory again: all its own have one vocabulary.
        """
        original(*args, **kwargs)
        model = sd_models.model_data.sd_model
        if model is not None and is_taiyi(model) != self._is_current:
            self._is_current = not self._is_current
            sd_hijack.model_hijack.clip = model.cond_stage_model
            sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
            _read_loras_again()
        if self._following is not None and not any(map(is_taiyi, _in_memory())):
            self._following.undo()
            self._following = None


taiyi = Taiyi()


def _describe(described: str, vocabulary: Path) -> str:
    """Return a copy of a description with our text encoder in it.

    Equal ones have one name: the WebUI loads weights into the same model then. The folder is
    private, as the file names a class that is imported.
    """
    config = yaml.safe_load(Path(described).read_text(encoding="utf-8"))
    config["model"]["params"]["cond_stage_config"] = {
        "target": f"{TaiyiTextModel.__module__}.{TaiyiTextModel.__name__}",
        "params": {"vocabulary": _literally(str(vocabulary))},
    }
    text = yaml.safe_dump(config, allow_unicode=True).encode()
    folder = private_folder() / "taiyi"
    folder.mkdir(exist_ok=True)
    file = folder / f"{hashlib.sha256(text).hexdigest()[:16]}.yaml"
    file.write_bytes(text)
    return str(file)


def _literally(text: str) -> str:
    r"""Return what OmegaConf, which reads the description, takes for this text.

    In a name as `${oc.env:HOME}` it would put in the environment. `\` keeps it, and itself.
    """
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _in_memory() -> list[Any]:
    data = sd_models.model_data
    return [*data.loaded_sd_models, data.sd_model]


def _read_loras_again() -> None:
    """Let the Lora extension read its files for the current model.

    Of a file it kept those layers alone that the former model had. It must not wait for the next
    job: layers that a refiner computes before then would be marked as merged.
    """
    extension = webui.host.lora_extension()
    if extension is None:
        return
    wanted = list(extension.loaded_networks)
    for net in (*wanted, *extension.networks_in_memory.values()):
        net.mtime = 0  # older than its file
    if wanted:
        extension.load_networks(
            [net.mentioned_name for net in wanted],
            [net.te_multiplier for net in wanted],
            [net.unet_multiplier for net in wanted],
            [net.dyn_dim for net in wanted],
        )


def _restore_models() -> None:
    """Undo what the WebUI has done to loaded models before it asks for a description.

    It has taken one off its list to load other weights into it, and taken its own changes back.
    """
    data, hijack = sd_models.model_data, sd_hijack.model_hijack
    taken = data.sd_model
    if taken is not None and hijack.clip is None:
        hijack.hijack(taken)
        if taken not in data.loaded_sd_models:
            data.loaded_sd_models.append(taken)
    whole = [m for m in data.loaded_sd_models if not next(m.parameters()).is_meta]
    if whole:
        current = whole[0]
        sd_models.send_model_to_device(current)
        hijack.clip, hijack.layers = current.cond_stage_model, list(current.modules())
        data.set_sd_model(current, already_loaded=True)
