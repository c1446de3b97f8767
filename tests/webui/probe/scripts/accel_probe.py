"""An extension for tests: merges LoRAs in a live WebUI, by the Lora extension and by ours.

It answers how far each is from float64 and how long each takes.
"""

import copy
import statistics
import time

import networks
import torch
from modules import script_callbacks, shared
from torch import nn

from lib_accel.host import webui
from lib_accel.host.unet.lora.layers import Loras
from lib_accel.runtime.accelerated import accelerated
from lib_accel.runtime.lora.merging import BasePlacement


def _load(names, strengths):
    """Let the Lora extension read these files and want them."""
    networks.load_networks(names, strengths, strengths, [None] * len(names))


def _loras(unet):
    return Loras(unet, BasePlacement("auto", webui.say))


def _parts(layer):
    """Return the wanted network modules of a layer."""
    name = getattr(layer, "network_layer_name", None)
    return [net.modules[name] for net in networks.loaded_networks if name in net.modules]


def _layers():
    return [
        m
        for m in shared.sd_model.model.diffusion_model.modules()
        if isinstance(m, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm))
    ]


def _copy_at_base(layer, dtype):
    """Return a copy of a layer without networks, which nothing else uses."""
    twin = copy.copy(layer)
    twin._parameters = {}
    base = getattr(layer, "network_weights_backup", None)
    bias = layer.network_bias_backup if base is not None else layer.bias
    weight = layer.weight if base is None else base
    twin.weight, twin.bias = (
        None if t is None else nn.Parameter(t.detach().to(dtype, copy=True), requires_grad=False)
        for t in (weight, bias)
    )
    twin.network_current_names = ()
    twin.network_weights_backup = twin.network_bias_backup = None
    return twin


def _with_tensors(part, change):
    """Return a copy of a network module with its tensors changed."""
    view = copy.copy(part)
    for name, value in vars(part).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            setattr(view, name, change(value))
        elif isinstance(value, nn.Module) and value is not part.sd_module:
            module = copy.deepcopy(value)
            for p in module.parameters():
                p.data = change(p.data)
            setattr(view, name, module)
    return view


@torch.no_grad()
def _exact(twin, parts):
    """Return weight and bias merged in float64."""
    weight, bias = twin.weight.double(), None if twin.bias is None else twin.bias.double()
    narrow = torch.Tensor.float
    torch.Tensor.float = lambda t: t  # some types compute a part in float32
    try:
        for part in parts:
            delta, more = _with_tensors(part, torch.Tensor.double).calc_updown(weight)
            weight = weight + delta.expand_as(weight)
            if more is not None:
                bias = more if bias is None else bias + more
    finally:
        torch.Tensor.float = narrow
    return weight, bias


def errors(names: str, strengths: str, dtype: str):
    """Return the error of both ways of merging, and in how many layers each failed.

    Errors are relative to the change that the networks make, over all layers they touch.
    """
    kind = getattr(torch, dtype)
    _load(names.split(","), [float(s) for s in strengths.split(",")])
    sums = {"ours": 0.0, "host": 0.0, "bias": 0.0}
    change, layers, failed = 0.0, 0, {"ours": 0, "host": 0}
    counted = networks.extra_network_lora.errors
    for layer in _layers():
        if not _parts(layer):
            continue
        name = layer.network_layer_name
        kept = [net.modules[name] for net in networks.loaded_networks if name in net.modules]
        for net in networks.loaded_networks:  # as files for a GPU are, in half precision
            if name in net.modules and kind != torch.float32:
                net.modules[name] = _with_tensors(net.modules[name], lambda t: t.to(kind))
        exact, ours, host = (_copy_at_base(layer, kind) for _ in range(3))
        weight, bias = _exact(exact, _parts(layer))
        counted.clear()
        _loras(ours).bring_up_to_date()
        failed["ours"] += sum(counted.values())
        counted.clear()
        networks.network_apply_weights(host)
        failed["host"] += sum(counted.values())
        for which, twin in (("ours", ours), ("host", host)):
            sums[which] += float((twin.weight.double() - weight).norm() ** 2)
        if bias is not None:
            sums["bias"] += float((ours.bias.double() - bias).norm() ** 2)
        change += float((weight - exact.weight.double()).norm() ** 2)
        layers += 1
        for net in networks.loaded_networks:
            if name in net.modules:
                net.modules[name] = kept.pop(0)
    return {"layers": layers, **{k: (v / change) ** 0.5 for k, v in sums.items()}, "failed": failed}


@torch.no_grad()
def seconds(names: str, strengths: str, host: bool):
    """Return how long reading the files takes, and merging them into the UNet, either way."""
    began = time.perf_counter()
    _load(
        names.split(",") if names else [],
        [float(s) for s in strengths.split(",")] if strengths else [],
    )
    read = time.perf_counter() - began
    layers = _layers()
    loras = _loras(webui.host.unet_of(webui.current_model()))
    began = time.perf_counter()
    if host:
        for layer in layers:
            networks.network_apply_weights(layer)
    else:
        loras.bring_up_to_date()
    return {"read": read, "merged": time.perf_counter() - began}


def overhead():
    """Return the milliseconds of all we do in a UNet call besides computing it, by piece.

    Nothing has changed since the call before. Medians of 200.
    """
    unet = webui.host.unet_of(webui.current_model())
    attachment, x = accelerated(unet), torch.zeros(2, 4, 16, 16)
    pieces = {
        "conditions": lambda: attachment.why_not_layers(x),
        "LoRAs": attachment.loras.bring_up_to_date,
        "layers": attachment.inspector.look,
        "weights": attachment.engine.binding.moved,
    }
    return {name: _median(piece) for name, piece in pieces.items()}


def reset_marks():
    """Forget which networks each layer holds, as other extensions do. Backups stay."""
    for layer in _layers():
        layer.network_current_names = ()


def _median(piece):
    times = []
    for _ in range(200):
        began = time.perf_counter()
        piece()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def _add_routes(_, app):
    for function in (errors, seconds, overhead, reset_marks):
        app.add_api_route(f"/accel-probe/{function.__name__}", function, methods=["GET"])


script_callbacks.on_app_started(_add_routes)
