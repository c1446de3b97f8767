"""The one door to the WebUI. Everything it could change under us is read here, and nowhere else."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from modules import devices, sd_unet, shared
from torch import nn

from ..config import MIB, Config, default_store

WAIT, CONTINUE = "wait for the compiler", "make images without acceleration"


def option(name: str) -> Any:
    return getattr(shared.opts, name)


def flag(name: str) -> Any:
    """A command-line flag of preload.py; None where the WebUI was started without it."""
    return getattr(shared.cmd_opts, name, None)


def enabled() -> bool:
    return bool(option("accel_enable")) and not flag("accel_disable")


def config() -> Config:
    """The options as a Config; command-line flags go first. Raises ValueError for a value out of range."""
    folder = flag(
        "accel_store"
    )  # not an option: whoever can set options could name a folder of planted native code
    return Config(
        backend=flag("accel_backend") or option("accel_backend"),
        store=Path(folder) if folder else default_store(),
        store_bytes=int(option("accel_store_mib")) * MIB,
        store_readonly=bool(flag("accel_store_readonly")),
        compile=not flag("accel_no_compile"),
        blocking=bool(flag("accel_blocking")) or option("accel_while_compiling") == WAIT,
        graphs=int(option("accel_graphs_mib")) > 0,
        graph_bytes=int(option("accel_graphs_mib")) * MIB,
        lora_base=option("accel_lora_base"),
    )


def device() -> torch.device:
    """Where images are computed, with its number: `cuda` alone names another device after torch.cuda.set_device."""
    d = torch.device(
        devices.get_optimal_device_name() if devices.device is None else devices.device
    )
    return (
        torch.device("cuda", torch.cuda.current_device())
        if d.type == "cuda" and d.index is None
        else d
    )


def free_memory() -> float:
    """Bytes of video memory that can be had, torch's own cache and CUDA graphs' pools included; without a GPU, any number."""
    where = device()
    if where.type != "cuda":
        return math.inf
    return (
        torch.cuda.mem_get_info(where)[0]
        + torch.cuda.memory_reserved(where)
        - torch.cuda.memory_allocated(where)
    )


def unet_of(sd_model: Any) -> nn.Module | None:
    """The UNet of a loaded model; None for one that has none (SD3's transformer is refused later, by its keys)."""
    return getattr(getattr(sd_model, "model", None), "diffusion_model", None)


def current_model() -> Any:
    """The loaded model, without making the WebUI load one."""
    from modules import sd_models

    return sd_models.model_data.sd_model


def api_credentials() -> dict[str, str]:
    """The pairs of `--api-auth`, read as the WebUI's API reads them."""
    pairs = shared.cmd_opts.api_auth
    return dict(pair.split(":", 1) for pair in pairs.split(",")) if pairs else {}


@contextlib.contextmanager
def idle() -> Iterator[bool]:
    """Whether no image is being made; none begins inside the block when it is true."""
    from modules.call_queue import queue_lock

    free = queue_lock.acquire(blocking=False)
    try:
        yield free
    finally:
        if free:
            queue_lock.release()


def say(text: str) -> None:
    """In the console, or the file it goes to: one of another alphabet must not cost the image."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(f"Acceleration: {text}".encode(encoding, "replace").decode(encoding), flush=True)


def why_not_now(unet: nn.Module) -> str | None:
    """What the WebUI is doing right now that compiled code cannot follow, or None."""
    if sd_unet.current_unet is not None:
        return f"another extension's UNet is active: {sd_unet.current_unet.option.label}"
    if shared.loaded_hypernetworks:
        return "a hypernetwork is active; it changes every attention layer"
    if devices.unet_needs_upcast:
        return "the WebUI upcasts this UNet while sampling (--upcast-sampling)"
    if option("lora_functional") and lora_wanted():
        return "LoRAs are applied at run time (Settings, Compatibility: old Lora method)"
    if option("upcast_attn") and next(unet.parameters()).dtype in (torch.float16, torch.bfloat16):
        return "the WebUI computes attention in float32 (Settings, Stable Diffusion: upcast cross attention layer)"
    if torch.is_grad_enabled() and any(p.requires_grad for p in unet.parameters()):
        return "the UNet is being trained"
    if (
        torch.jit.is_tracing() or getattr(torch.compiler, "is_compiling", bool)()
    ):  # torch 2.1 cannot tell the second
        return "the UNet is being exported"  # a trace would take what compiled code answers for a constant
    return None


@contextlib.contextmanager
def autocast() -> Iterator[None]:
    """The WebUI's own precision, for layers that run its way."""
    with devices.autocast():
        yield


def networks() -> Any:
    """The Lora extension's module, or None where it is disabled."""
    return sys.modules.get("networks")


def lora_wanted() -> tuple[tuple[object, ...], ...]:
    """The set of networks the Lora extension wants applied, in the form in which it marks each layer."""
    module = networks()
    return (
        tuple(
            (n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in module.loaded_networks
        )
        if module
        else ()
    )


def merges_as_known(networks: Any) -> bool:
    """Whether the Lora extension merges by its own code. Other extensions may have put theirs there: then it has to be called."""
    return networks.network_apply_weights.__module__ == "networks"


def count_lora_error(name: str) -> None:
    """For the message under the image: a network with a layer that does not fit."""
    errors = networks().extra_network_lora.errors
    errors[name] = errors.get(name, 0) + 1
