"""Functions that extensions want called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

callbacks: dict[str, list[Callable[..., Any]]] = defaultdict(list)


def clear_callbacks() -> None:
    callbacks.clear()


def on_model_loaded(callback: Callable[..., Any]) -> None:
    callbacks["model_loaded"].append(callback)


def model_loaded_callback(sd_model: Any) -> None:
    _call("model_loaded", sd_model)


def on_before_ui(callback: Callable[..., Any]) -> None:
    callbacks["before_ui"].append(callback)


def before_ui_callback() -> None:
    _call("before_ui")


def on_ui_tabs(callback: Callable[..., Any]) -> None:
    callbacks["ui_tabs"].append(callback)


def ui_tabs_callback() -> list[Any]:
    return [tab for callback in callbacks["ui_tabs"] for tab in callback() or []]


def on_app_started(callback: Callable[..., Any]) -> None:
    callbacks["app_started"].append(callback)


def app_started_callback(demo: Any, app: Any) -> None:
    _call("app_started", demo, app)


def on_cfg_denoiser(callback: Callable[..., Any]) -> None:
    callbacks["cfg_denoiser"].append(callback)


def cfg_denoiser_callback(params: Any) -> None:
    _call("cfg_denoiser", params)


def on_cfg_denoised(callback: Callable[..., Any]) -> None:
    callbacks["cfg_denoised"].append(callback)


def cfg_denoised_callback(params: Any) -> None:
    _call("cfg_denoised", params)


def on_cfg_after_cfg(callback: Callable[..., Any]) -> None:
    callbacks["cfg_after_cfg"].append(callback)


def cfg_after_cfg_callback(params: Any) -> None:
    _call("cfg_after_cfg", params)


def on_script_unloaded(callback: Callable[..., Any]) -> None:
    callbacks["script_unloaded"].append(callback)


def script_unloaded_callback() -> None:
    for callback in reversed(callbacks["script_unloaded"]):
        callback()


def _call(category: str, *args: Any) -> None:
    """Call them all. The WebUI logs what one raises and goes on; here it fails the test."""
    for callback in callbacks[category]:
        callback(*args)
