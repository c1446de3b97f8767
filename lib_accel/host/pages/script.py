"""The script that runs with every job: it shows the status line and marks accelerated images."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import scripts

from ...compile.backends.eager import Eager
from .. import webui
from ..service import service
from ..taiyi.hooks import taiyi
from .status_line import announced_line
from .xyz import is_cell

Served = tuple[dict[str, int], str]
"""How many calls each way has computed, by its counter, and the backend."""

MARKS = ("Accel", "Accel VAE")
"""What infotexts call the backends of the UNet and of the VAE."""


def _compiling() -> bool:
    return not all(job.done for job in service.jobs())


def _served() -> tuple[Served, Served]:
    """Return how many calls each way has computed so far, of the UNet and of the VAE."""
    return service.served(), service.vaes.served(webui.current_model())


def _made_by(before: Served, now: Served) -> str:
    """Return the backend that has computed a batch, between two answers of `_served`.

    "" is the WebUI's own code: without compiled code, one call by it makes the batch its own.
    """
    if compiled := _risen(before, now):
        return compiled
    rose = {name: count - before[0][name] for name, count in now[0].items()}
    return Eager.name if rose["eager_calls"] and not rose["host_calls"] else ""


def _risen(before: Served, now: Served) -> str:
    """Return the backend whose compiled code was called in between; "" where none was."""
    name = "accelerated_calls"
    return (now[1] or before[1]) if now[0][name] > before[0][name] else ""


class AccelScript(scripts.Script):
    """A script that is always on. scripts/accel.py registers it; "Reload UI" makes a new one."""

    def title(self) -> str:
        """Return the name under which the WebUI lists the script."""
        return "Acceleration"

    def show(self, is_img2img: bool) -> object:
        """Run in both tabs without being chosen."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """Show the status line; javascript/accel.js moves it above the picture. No controls."""
        tab = "img2img" if is_img2img else "txt2img"
        gr.HTML(announced_line(), elem_id=f"accel_status_{tab}", elem_classes=["accel-status"])
        return []

    def before_process(self, p: Any, *args: Any) -> None:
        """Let the service follow the loaded model and finished compilations before a job."""
        taiyi.refused = None
        service.before_job(p)

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Do the same before each batch, and note how many calls each way has computed."""
        service.before_images(p)
        service.clock.begin()
        p._accel_served, p._accel_compiling = _served(), _compiling()

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Let the service name the memory that it holds, before each pass of the sampler."""
        service.before_sampling(p.sd_model)

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Write `Accel: <backend>` into the infotext where we have computed this batch.

        `Accel VAE` says the same of its decoding, and of the encoding between two passes.
        """
        before, now = p._accel_served, _served()
        marks = {MARKS[0]: _made_by(before[0], now[0]), MARKS[1]: _risen(before[1], now[1])}
        for mark, backend in marks.items():
            p.extra_generation_params.pop(mark, None)
            if backend:
                p.extra_generation_params[mark] = backend
        backend, vae = marks.values()
        service.clock.finish(backend, p, p._accel_compiling or _compiling(), vae)
        service.note_images(len(kwargs.get("images", [0])), backend)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """Let the service undo what was set for this job alone.

        A whole grid takes the parameters of its first picture, whose backend is not the others'.
        """
        service.after_job()
        if is_cell(p):
            for mark in MARKS:
                p.extra_generation_params.pop(mark, None)
