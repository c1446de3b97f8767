"""Facts: callbacks, scripts, and the order of things in a job."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from modules import call_queue, script_callbacks, scripts, sd_models
from torch import nn

heard: list[list[Any]] = []
"""What was called since the listener was loaded, in order."""


def listen() -> type:
    """Begin to listen; called when scripts are loaded. Returns a script class to register."""
    script_callbacks.on_app_started(
        lambda *args: heard.append(["app_started", len(args), hasattr(args[1], "add_api_route")])
    )
    script_callbacks.on_model_loaded(_model_loaded)
    script_callbacks.on_cfg_denoiser(lambda *args: heard.append(["cfg_denoiser", len(args)]))
    script_callbacks.on_cfg_denoised(lambda *args: heard.append(["cfg_denoised", len(args)]))
    script_callbacks.on_cfg_after_cfg(lambda *args: heard.append(["cfg_after_cfg", len(args)]))

    class Listener(scripts.Script):
        def title(self) -> str:
            return "Listener"

        def show(self, is_img2img: bool) -> object:
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            return []

        def before_process(self, p: Any, *args: Any) -> None:
            heard.append(["before_process", list(args), *_moment()])

        def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            heard.append(["before_process_batch", list(args), kwargs["batch_number"], *_moment()])

        def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            kind = type(p.extra_generation_params).__name__
            heard.append(["postprocess_batch", kwargs["batch_number"], kind, *_moment()])

    return Listener


def _moment() -> list[Any]:
    """Return whether a job holds the lock, gradients are on, and the number of wanted networks."""
    import networks

    free = call_queue.queue_lock.acquire(blocking=False)
    if free:
        call_queue.queue_lock.release()
    return [not free, torch.is_grad_enabled(), len(networks.loaded_networks)]


def _model_loaded(*args: Any) -> None:
    model = args[0]
    heard.append(["model_loaded", len(args), model is sd_models.model_data.sd_model])
    model.model.diffusion_model.register_forward_pre_hook(_unet_called, with_kwargs=True)


def _unet_called(unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    shapes = [[t.ndim, str(t.dtype)] for t in (*args, *kwargs.values())]
    heard.append(["unet", len(args), list(kwargs), shapes, *_moment()])


def job() -> list[list[Any]]:
    """What was heard in the last job, from its first stage to its last."""
    begun, ended = (
        max(i for i, what in enumerate(heard) if what[0] == name)
        for name in ("before_process", "postprocess_batch")
    )
    return heard[begun : ended + 1]


def started() -> list[list[Any]]:
    """The first of each callback at the start."""
    return [what for what in heard if what[0] == "app_started"][:1] + [
        what for what in heard if what[0] == "model_loaded"
    ][:1]


def script_class() -> dict[str, Any]:
    """The parameters of the methods of a script."""
    names = ("title", "show", "ui", "before_process", "before_process_batch", "postprocess_batch")
    return {
        name: [
            [p.name, p.kind.name]
            for p in inspect.signature(getattr(scripts.Script, name)).parameters.values()
        ]
        for name in names
    }
