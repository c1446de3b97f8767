"""The Acceleration section of the settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from modules import shared

from ...errors import AccelError
from .. import stored_code, webui
from ..options import OPTIONS
from .markup import varying

SECTION = ("accel", "Acceleration")

_ONLY_A1111 = ("accel_vae", "accel_lora_base", "accel_taiyi")
"""Options without a meaning where the WebUI merges LoRAs, and its VAEs are left alone."""


def register(changed: Callable[[], list[str]]) -> None:
    """Add the options to the WebUI. `changed` is called after one of them was set.

    Values that earlier versions stored are rewritten here, before the page is built from them. They
    reach config.json when settings are applied next. The folder of compiled code is tried.
    """
    options = _options()
    for option in options.values():
        option.onchange = lambda: _tell(changed())
    shared.options_templates.update(shared.options_section(SECTION, options))
    for name in () if webui.host.taiyi else _ONLY_A1111:
        options[name].section = (None, "hidden")
    for name, option in options.items():
        shared.opts.data_labels[name] = option
        shared.opts.data.setdefault(name, option.default)  # to which a refused change is taken back
        webui.option(name)
    _offer_what_works(options["accel_backend"])
    _drop_stored_folder()
    _try_folder()


def _tell(sentences: list[str]) -> None:
    """Tell the user, in the page where a page has asked, and in the console."""
    for sentence in sentences:
        webui.say(sentence)
        with warnings.catch_warnings():  # where no page has asked, gradio warns in the console
            warnings.simplefilter("ignore")
            gr.Warning(sentence)


def _options() -> dict[str, shared.OptionInfo]:
    return {
        "accel_enable": _option(
            "accel_enable", "Apply acceleration in UNet when loading models"
        ).info(
            "the model that is loaded now follows with its next image; "
            "images are the same, only sooner"
        ),
        "accel_vae": _option("accel_vae", "Accelerate the VAE too").info(
            "it turns the result into a picture, and a picture into what img2img begins with"
        ),
        "accel_backend": _choice("accel_backend", "Backend", _BACKENDS).info(
            "auto leaves the sizes to the WebUI at which it was measured to be faster; "
            "a backend that is chosen here serves at every size"
        ),
        "accel_while_compiling": _choice(
            "accel_while_compiling",
            "While the compiler runs (once per architecture)",
            {
                "continue": "make images without acceleration",
                "wait": "let images wait for the compiler",
            },
        ).info("Interrupt and Skip end the wait; nothing else ever waits"),
        "accel_store_mib": _size(
            "accel_store_mib", "Largest size of the folder of compiled code, MiB", step=64
        ),
        "accel_graphs_mib": _size(
            "accel_graphs_mib", "Video memory for CUDA graphs, MiB", step=64
        ).info("0 switches them off"),
        "accel_witness_steps": _size(
            "accel_witness_steps", "Compare one step in so many with the WebUI's own code", step=100
        ).info("at random; 0 switches this off; the first step after a change is always compared"),
        "accel_lora_base": _choice(
            "accel_lora_base",
            "Memory for undoing LoRAs",
            {
                "auto": "video memory while 8 GiB of it are free, else pinned memory",
                "host": "ordinary memory",
                "pinned": "pinned memory",
                "gpu": "video memory",
            },
        ).info(
            "it holds a copy of the layers that LoRAs have changed; the faster it is, the sooner "
            "LoRAs change; applies to layers that are changed from now on"
        ),
        "accel_taiyi": _option(
            "accel_taiyi", "Load Taiyi, Stable Diffusion with a Chinese text encoder"
        ).info("applies to checkpoints that are loaded from now on"),
    }


_BACKENDS = {
    "auto": "auto: the best that works here",
    "tensorrt": "tensorrt: NVIDIA's TensorRT for RTX, which you install",
    "aoti": "aoti: compiled once, and kept on disk",
    "jit": "jit: compiled anew after each start",
    "kernels": "kernels: fused kernels, for NVIDIA cards without a compiler",
    "eager": "eager: not compiled",
}


def _offer_what_works(backends: shared.OptionInfo) -> None:
    """Leave the backends among the choices that work here, and name why the others do not."""
    unable = stored_code.cannot_serve()
    unable.pop(webui.option("accel_backend"), None)  # the page has to show what is set
    choices = backends.component_args["choices"]
    choices[:] = [(label, word) for label, word in choices if word not in unable]
    for name, reason in unable.items():
        backends.comment_after += f"<br><span class='info'>{varying(f'{name}: {reason}')}</span>"


def _option(name: str, label: str, component: Any = None, **given: Any) -> shared.OptionInfo:
    return shared.OptionInfo(OPTIONS[name].default, label, component, given or None)


def _choice(name: str, label: str, labels: Mapping[str, str]) -> shared.OptionInfo:
    """Return a choice between words. The page shows `labels`; what is stored is the word."""
    choices = [(labels.get(word, word), word) for word in OPTIONS[name].words]
    return _option(name, label, gr.Radio, choices=choices)


def _size(name: str, label: str, step: int) -> shared.OptionInfo:
    """Return a slider, which keeps what is typed between its limits. The page names them."""
    kind = OPTIONS[name]
    option = _option(name, label, gr.Slider, minimum=kind.least, maximum=kind.most, step=step)
    limits = varying(f"({kind.least} to {kind.most})")
    option.comment_after += f"<span class='info'>{limits}</span> "
    return option


def _try_folder() -> None:
    """Name in the console what is wrong with the folder of compiled code. The tab shows it too."""
    try:
        for note in stored_code.folder_notes():
            webui.say("; ".join(filter(None, (note.what, note.advice))))
    except AccelError as e:
        webui.say(f"the folder of compiled code cannot be used: {e}")


def _drop_stored_folder() -> None:
    """Drop a folder that an earlier version stored as an option, and name it in the console.

    The folder of compiled code decides which native code is loaded, so no setting that a page can
    change may name it.
    """
    folder = shared.opts.data.pop("accel_store", None)
    if folder:
        webui.say(
            f"the stored setting accel_store ({folder}) is ignored; "
            "start the WebUI with --accel-store or set ACCEL_STORE"
        )
