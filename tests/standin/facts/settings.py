"""Facts: settings and the page that shows them, devices, the lock, other extensions' UNets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from modules import call_queue, devices, sd_models, sd_unet, shared, ui_settings


@contextlib.contextmanager
def _changed(thing: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)


def _raised(function: Callable[..., Any], *args: Any) -> str | None:
    try:
        function(*args)
    except Exception as e:  # noqa: BLE001  any kind is a fact
        return type(e).__name__
    return None


def _ours() -> list[str]:
    return sorted(k for k in shared.opts.data_labels if k.startswith("accel_"))


def options() -> dict[str, Any]:
    """Options that are added, set, told of a change, unknown; ours, and those we read."""
    heard: list[int] = []
    info = shared.OptionInfo(5, "A label", None, {"minimum": 0})
    same = info.info("more")
    info.onchange = lambda: heard.append(shared.opts.standin_probe)
    given = {"standin_probe": info}
    section = shared.options_section(("probe", "Probe"), given)
    shared.opts.data_labels["standin_probe"] = info
    in_info = [same is info, "more" in info.comment_after]
    out: dict[str, Any] = {
        "info": [*in_info, info.default, info.label, info.component_args],
        "section": [section is given, list(info.section or ())],
        "default": shared.opts.standin_probe,
        "changes": [shared.opts.set("standin_probe", value) for value in (7, 7, 8, "9", None)],
        "heard": heard,
    }
    info.onchange = lambda: 1 / 0  # type: ignore[assignment,return-value]
    out["an onchange that fails"] = [shared.opts.set("standin_probe", 9), shared.opts.standin_probe]
    shared.opts.data["standin_probe"] = 11
    out["directly"] = [shared.opts.standin_probe, shared.opts.data["standin_probe"]]
    del shared.opts.data_labels["standin_probe"], shared.opts.data["standin_probe"]
    out["unknown"] = [
        _raised(getattr, shared.opts, "standin_probe"),
        _raised(getattr, shared.cmd_opts, "standin_probe"),
    ]
    shared.options_templates["standin_probe"] = info
    out["label added to the templates alone"] = "standin_probe" in shared.opts.data_labels
    del shared.options_templates["standin_probe"]
    out["flags"] = {
        k: v
        for k, v in vars(shared.cmd_opts).items()
        if k == "api_auth" or (k.startswith("accel_") and k != "accel_store")
    }
    labels = {name: shared.opts.data_labels[name] for name in _ours()}
    out["ours"] = {k: [v.section, v.default, callable(v.onchange)] for k, v in labels.items()}
    out["read"] = [shared.opts.lora_functional, shared.opts.sd_unet, shared.opts.upcast_attn]
    return out


def settings_page() -> dict[str, Any]:
    """What the settings page shows for each of our options, and what it stores."""
    out = {}
    for name in _ours():
        component = ui_settings.create_setting_component(name)
        choices = [list(c) for c in getattr(component, "choices", ())]
        opened = ui_settings.get_value_for_setting(name)
        out[name] = {
            "component": [type(component).__name__, component.label, component.value],
            "choices": choices,
            "stored": [component.preprocess(value) for _, value in choices],
            "opened": [opened["value"], list(map(list, opened.get("choices", ())))],
        }
    return out


def lock() -> list[Any]:
    """Whether the lock of a job can be taken: free, held, inside and after a `with`."""
    lock = call_queue.queue_lock
    out = [lock.acquire(blocking=False), lock.acquire(blocking=False)]
    lock.release()
    with lock:
        out.append(lock.acquire(blocking=False))
    out.append(lock.acquire(blocking=False))
    lock.release()
    return out


def buttons() -> dict[str, Any]:
    """What Interrupt, Skip and their like leave for a job to see, and the text of its progress."""
    state, names = shared.state, ("interrupted", "skipped", "stopping_generation", "textinfo")
    before, out = {name: getattr(state, name) for name in names}, {}
    for press in ("interrupt", "skip", "stop_generating"):
        getattr(state, press)()
        out[press] = {name: getattr(state, name) for name in names}
    for name, value in before.items():
        setattr(state, name, value)
    return {**out, "language": shared.opts.localization}


def device() -> dict[str, Any]:
    """Where and how precisely images are computed."""
    with devices.autocast():
        autocast = torch.is_autocast_enabled("cpu")
    return {
        "device": str(devices.device),
        "optimal": devices.get_optimal_device_name(),
        "upcast": devices.unet_needs_upcast,
        "autocast": autocast,
        "hypernetworks": list(shared.loaded_hypernetworks),
    }


def other_unets() -> dict[str, Any]:
    """Another extension's UNet comes and goes; the class forward of the model's own calls it."""
    unet = sd_models.model_data.sd_model.model.diffusion_model
    heard: list[str] = []

    class Theirs(sd_unet.SdUnet):
        def forward(self, x: Any, timesteps: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
            return [x, timesteps, context, list(args), kwargs]

        def activate(self) -> None:
            heard.append("activate")

        def deactivate(self) -> None:
            heard.append("deactivate")

    class Option(sd_unet.SdUnetOption):
        label = "standin probe"

        def create_unet(self) -> Any:
            return Theirs()

    before, option = sd_unet.current_unet, Option()
    sd_unet.unet_options.append(option)
    with _changed(torch.nn.Module, "to", lambda self, *_: self):  # the WebUI moves the UNet away
        sd_unet.apply_unet("standin probe")
        current = sd_unet.current_unet
        answer = type(unet).forward(unet, 1, 2, 3, 4, y=5)
        named = type(unet).forward(unet, 1, timesteps=2, context=3)
        sd_unet.apply_unet("None")
    sd_unet.unet_options.remove(option)
    return {
        "before": before,
        "label": current.option.label,
        "answer": answer,
        "named": named,
        "heard": heard,
        "after": sd_unet.current_unet,
    }
