"""What the WebUI is set to, what it has loaded, and what it is doing right now.

host/ as a whole is the only door to the WebUI. Within it, this file reads the WebUI's state; pages/
adds our settings, pages and routes.
"""

from __future__ import annotations

import contextlib
import enum
import re
import reprlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from modules import devices, shared
from torch import nn

from ...compile.backends.jit import exporting
from ...config import FETCH_S, MIB, Config, key_file, places
from ...errors import printable_lines
from .. import is_forge
from ..options import OPTIONS, Number
from . import events
from .protocol import Host


def option(name: str) -> Any:
    """Return the value of one of our options, of the type that options.py gives it.

    One that means nothing is named in the console and replaced by the default.
    """
    try:
        return _read(name)
    except ValueError as e:
        say(_replace(name, e, OPTIONS[name].default))
        return shared.opts.data[name]


def mend_options(before: dict[str, Any]) -> list[str]:
    """Replace each option that means nothing, and return a sentence on each.

    It becomes what it was `before`, or the limit that it exceeds. `before` is brought up to date.
    """
    sentences = []
    for name in OPTIONS:
        try:
            before[name] = _read(name)
        except ValueError as e:
            sentences.append(_replace(name, e, before.get(name, OPTIONS[name].default)))
    return sentences


def _replace(name: str, error: ValueError, otherwise: object) -> str:
    """Replace an option that means nothing, and return what to tell the user of it."""
    kind, stored = OPTIONS[name], getattr(shared.opts, name)
    nearest = kind.nearest(stored) if isinstance(kind, Number) else None
    value = shared.opts.data[name] = otherwise if nearest is None else nearest
    label = shared.opts.data_labels[name].label
    return f"{label} ({name}) is {reprlib.repr(stored)}; {error}. {value!r} is used instead."


def _read(name: str) -> Any:
    """Return an option's value; rewrite one of another type or version in the WebUI's settings."""
    stored = getattr(shared.opts, name)
    value = OPTIONS[name].read(stored)
    if type(value) is not type(stored) or value != stored:
        shared.opts.data[name] = value
    return value


def flag(name: str) -> Any:
    """Return a command-line flag of preload.py; None where the WebUI was started without it."""
    return getattr(shared.cmd_opts, name, None)


def enabled() -> bool:
    """Return whether acceleration is switched on, by the settings and the command line."""
    return option("accel_enable") and not flag("accel_disable")


def vae_enabled() -> bool:
    """Return whether acceleration of the VAE is switched on too."""
    return host.accelerates_vae and enabled() and option("accel_vae")


def has_own_options(p: Any) -> bool:
    """Return whether a job of the WebUI has options of ours for itself alone."""
    return not OPTIONS.keys().isdisjoint(getattr(p, "override_settings", ()))


def config() -> Config:
    """Return the options as a Config. Command-line flags override them.

    Where compiled code comes from is no option: whoever can set options could name a place of
    planted native code.
    """
    folder, url = places(flag("accel_store"))
    readonly, seconds = bool(flag("accel_store_readonly")), flag("accel_fetch_seconds")
    return Config(
        backend=_backend(),
        store=folder,
        remote=url,
        fetch_s=FETCH_S if seconds is None else max(0.0, seconds),  # not a number: 0
        store_bytes=option("accel_store_mib") * MIB,
        store_readonly=readonly,
        compile=not (flag("accel_no_compile") or (url and readonly)),
        graphs=option("accel_graphs_mib") > 0,
        graph_bytes=option("accel_graphs_mib") * MIB,
        lora_base=option("accel_lora_base"),
        store_key=key_file("store_key", flag("accel_store_key")),
        trusted_keys=key_file("trusted_keys", flag("accel_trusted_keys")),
        signing_key=key_file("signing_key", flag("accel_signing_key")),
    )


def _backend() -> str:
    named = flag("accel_backend")
    if named is not None:
        try:
            return OPTIONS["accel_backend"].read(named)
        except ValueError as e:
            say(f"--accel-backend is {named!r}; {e}. The setting is used instead.")
            shared.cmd_opts.accel_backend = None  # named once
    return option("accel_backend")


def device() -> torch.device:
    """Return the device that computes images, with its index.

    Without an index, `cuda` means another device after torch.cuda.set_device.
    """
    found = torch.device(devices.device or devices.get_optimal_device_name())
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def current_model() -> Any:
    """Return the loaded model or None. `shared.sd_model` would make the WebUI load one."""
    from modules import sd_models

    return sd_models.model_data.sd_model


def api_credentials() -> dict[str, str]:
    """Return the passwords of `--api-auth` by user, parsed as the WebUI's API parses them."""
    pairs = shared.cmd_opts.api_auth
    return dict(pair.split(":", 1) for pair in pairs.split(",")) if pairs else {}


def trusts(origin: str) -> bool:
    """Return whether the command line lets pages of another origin use the WebUI's API."""
    named = (shared.cmd_opts.cors_allow_origins or "").split(",")
    pattern = shared.cmd_opts.cors_allow_origins_regex
    return origin in named or "*" in named or bool(pattern and re.fullmatch(pattern, origin))


def switched_on(p: Any) -> object:
    """Return what is switched on for a job of the WebUI, in a form that can be compared.

    These are the WebUI's options, and the booleans and choices among the arguments of scripts: not
    texts and numbers, which differ from image to image and switch nothing.
    """
    options = {
        name: value if isinstance(value, (bool, str)) else bool(value)
        for name, value in shared.opts.data.items()
        if not name.startswith("accel_")
    }
    runner, given = getattr(p, "scripts", None), getattr(p, "script_args", None)
    if runner is None or not isinstance(given, (list, tuple)):
        return options, ()
    active = list(runner.alwayson_scripts)
    if given and isinstance(given[0], int) and given[0]:  # the number of the script that was chosen
        active += runner.selectable_scripts[given[0] - 1 : given[0]]
    return options, [(script.filename, _arguments(script, given)) for script in active]


def _arguments(script: Any, given: Any) -> list[object]:
    values = given[script.args_from : script.args_to]
    controls = getattr(script, "controls", None) or ()  # from WebUI 1.8 on
    controls = [*controls, *[None] * len(values)]
    return [_choice(value, control) for value, control in zip(values, controls, strict=False)]


def _choice(value: Any, control: Any) -> object:
    """Return a value where it is a boolean or was chosen from several, else its type alone.

    The API may give an object of many fields, e.g. a ControlNet unit; its short texts are names.
    """
    if isinstance(value, (bool, enum.Enum)):
        return value
    if getattr(control, "choices", None) and isinstance(value, (str, int, list)):
        return str(value)
    fields = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return type(value).__name__, [
        (name, each if isinstance(each, bool) or _is_name(each) else type(each).__name__)
        for name, each in fields.items()
    ]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 64


@contextlib.contextmanager
def idle() -> Iterator[bool]:
    """Yield whether no image is being made. Where it yields True, none begins inside the block."""
    from modules.call_queue import queue_lock

    free = queue_lock.acquire(blocking=False)
    try:
        yield free
    finally:
        if free:
            queue_lock.release()


def say(text: str) -> None:
    """Print in the console, which only shows it; with --accel-log-json as a line of JSON.

    A character that the console's encoding lacks becomes `?`: it must not make an image fail.
    """
    if flag("accel_log_json"):
        print(events.line("info", __name__, text), flush=True)
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(
        f"Acceleration: {printable_lines(text)}".encode(encoding, "replace").decode(encoding),
        flush=True,
    )


def blocked_by(unet: nn.Module) -> str | None:
    """Return what is being done right now that compiled code cannot follow, or None."""
    if why := host.blocked_by(unet):
        return why
    if torch.is_grad_enabled() and any(p.requires_grad for p in unet.parameters()):
        return "the UNet is being trained"
    if exporting():  # a trace would record the output of compiled code as a constant
        return "the UNet is being exported"
    return None


def wanted_loras() -> tuple[tuple[object, ...], ...]:
    """Return the networks that the Lora extension wants merged, in the form of its marks."""
    module = host.lora_extension()
    if module is None:
        return ()
    return tuple(
        (n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in module.loaded_networks
    )


def _chosen() -> Host:
    if is_forge():
        from .forge import Forge

        return Forge()
    from .a1111 import A1111

    return A1111()


host = _chosen()
"""The WebUI that this process is."""
