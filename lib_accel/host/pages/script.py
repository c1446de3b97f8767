"""What runs with every job: the status line above the picture, and the mark in the infotext of images we served."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import scripts

from ..service import service
from .tab import status_line


class AccelScript(scripts.Script):
    """Always on. Registered by the script file, which the WebUI loads anew on "Reload UI"."""

    def title(self) -> str:
        return "Acceleration"

    def show(self, is_img2img: bool) -> object:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        tab = "img2img" if is_img2img else "txt2img"
        gr.HTML(status_line(), elem_id=f"accel_status_{tab}", elem_classes=["accel-status"])
        return []

    def before_process(self, p: Any, *args: Any) -> None:
        service.before_images()

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        service.before_images()
        p._accel_calls = service.served()[0]

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Infotext `Accel: aoti` for a batch that compiled code really computed, and nothing for others."""
        backend = service.batch_done(p._accel_calls)
        if backend:
            p.extra_generation_params["Accel"] = backend
        else:
            p.extra_generation_params.pop("Accel", None)
