"""The Settings section."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules import shared

from ...compile.session import BACKENDS
from ...config import AUTO, LORA_BASES
from .. import webui

SECTION = ("accel", "Acceleration")


def register(changed: Callable[[], None]) -> None:
    """Add the options. `changed` is called after one of them was changed."""
    info = shared.OptionInfo
    options: dict[str, Any] = {
        "accel_enable": info(True, "Apply acceleration in UNet when loading models").info(
            "takes effect for the next image; images are the same, only sooner"
        ),
        "accel_backend": info(
            "auto", "Backend", gr.Radio, {"choices": [AUTO, *(b.name for b in BACKENDS)]}
        ).info("auto takes the best that works on this machine and says why a better one does not"),
        "accel_while_compiling": info(
            webui.CONTINUE,
            "While the compiler works (once per architecture)",
            gr.Radio,
            {"choices": [webui.CONTINUE, webui.WAIT]},
        ),
        "accel_store_mib": info(
            2048,
            "Largest size of the folder of compiled code, MiB",
            gr.Slider,
            {"minimum": 64, "maximum": 16384, "step": 64},
        ),
        "accel_graphs_mib": info(
            1024,
            "Video memory for CUDA graphs, MiB",
            gr.Slider,
            {"minimum": 0, "maximum": 8192, "step": 64},
        ).info("0 switches them off"),
        "accel_lora_base": info(
            AUTO,
            "Weights without LoRA are kept in",
            gr.Radio,
            {"choices": list(LORA_BASES)},
        ).info(
            "a copy of the layers LoRAs have touched; the faster that memory, the sooner LoRAs change. For layers touched later"
        ),
    }
    for option in options.values():
        option.onchange = changed
    shared.options_templates.update(shared.options_section(SECTION, options))
    for key, option in options.items():
        shared.opts.data_labels[key] = option
    _ignore_stored_folder()


def _ignore_stored_folder() -> None:
    """Name a folder that an earlier version stored as an option, once, and drop it.

    The folder of compiled code decides which native code is loaded, so a setting that any page can change must not name it.
    """
    folder = shared.opts.data.pop("accel_store", None)
    if folder:
        webui.say(
            f"the stored setting accel_store ({folder}) is ignored; start the WebUI with --accel-store or set ACCEL_STORE"
        )
