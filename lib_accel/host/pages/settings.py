"""The Acceleration section of the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from modules import shared

from .. import webui
from ..options import OPTIONS

SECTION = ("accel", "Acceleration")


def register(changed: Callable[[], None]) -> None:
    """Add the options to the WebUI. `changed` is called after one of them was set.

    Values that earlier versions stored are rewritten here, before the page is built from them. They
    reach config.json when settings are applied next.
    """
    options = _options()
    for option in options.values():
        option.onchange = changed
    shared.options_templates.update(shared.options_section(SECTION, options))
    for name, option in options.items():
        shared.opts.data_labels[name] = option
        shared.opts.data.setdefault(name, option.default)  # to which a refused change is taken back
        webui.option(name)
    _drop_stored_folder()


def _options() -> dict[str, shared.OptionInfo]:
    return {
        "accel_enable": _option(
            "accel_enable", "Apply acceleration in UNet when loading models"
        ).info("takes effect for the next image; images are the same, only sooner"),
        "accel_backend": _choice("accel_backend", "Backend", {}).info(
            "auto takes the best that works on this machine and says why a better one does not"
        ),
        "accel_while_compiling": _choice(
            "accel_while_compiling",
            "While the compiler runs (once per architecture)",
            {
                "continue": "make images without acceleration",
                "wait": "wait for the compiler",
            },
        ),
        "accel_store_mib": _size(
            "accel_store_mib", "Largest size of the folder of compiled code, MiB", 64, 16384
        ),
        "accel_graphs_mib": _size(
            "accel_graphs_mib", "Video memory for CUDA graphs, MiB", 0, 8192
        ).info("0 switches them off"),
        "accel_witness_steps": _option(
            "accel_witness_steps",
            "Compare one step in so many with the WebUI's own code",
            gr.Slider,
            minimum=0,
            maximum=4000,
            step=100,
        ).info("at random; 0 switches this off; the first step after a change is always compared"),
        "accel_lora_base": _choice(
            "accel_lora_base",
            "Weights without LoRA are kept in",
            {
                "auto": "video memory while 8 GiB of it are free, else pinned memory",
                "host": "ordinary memory",
                "pinned": "pinned memory",
                "gpu": "video memory",
            },
        ).info(
            "a copy of the layers that LoRAs have changed; the faster this memory, the sooner "
            "LoRAs change; applies to layers that are changed from now on"
        ),
        "accel_taiyi": _option(
            "accel_taiyi", "Load Taiyi, Stable Diffusion with a Chinese text encoder"
        ).info("applies to checkpoints that are loaded from now on"),
    }


def _option(name: str, label: str, component: Any = None, **given: Any) -> shared.OptionInfo:
    return shared.OptionInfo(OPTIONS[name].default, label, component, given or None)


def _choice(name: str, label: str, labels: Mapping[str, str]) -> shared.OptionInfo:
    """Return a choice between words. The page shows `labels`; what is stored is the word."""
    choices = [(labels.get(word, word), word) for word in OPTIONS[name].words]
    return _option(name, label, gr.Radio, choices=choices)


def _size(name: str, label: str, least: int, most: int) -> shared.OptionInfo:
    return _option(name, label, gr.Slider, minimum=least, maximum=most, step=64)


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
