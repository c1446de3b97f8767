"""For tests alone: merges in the live WebUI, by its Lora extension, by ours and in float64, and says how far apart they are."""

import copy
import functools
import statistics
import time

import networks
import torch
from modules import script_callbacks, shared
from torch import nn

from lib_accel.host import lora, webui
from lib_accel.runtime.accelerated import accelerated
from lib_accel.runtime.lora_bases import Bases


def _wanted(names, strengths):
    networks.load_networks(names, strengths, strengths, [None] * len(names))
    return webui.wanted_loras()


def _parts(layer):
    name = getattr(layer, "network_layer_name", None)
    return [net.modules[name] for net in networks.loaded_networks if name in net.modules]


def _layers():
    return [
        m
        for m in shared.sd_model.model.diffusion_model.modules()
        if isinstance(m, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm))
    ]


def _apart(layer, dtype):
    """A copy of one layer at its base, which nothing else uses."""
    twin = copy.copy(layer)
    twin._parameters = {}
    base = getattr(layer, "network_weights_backup", None)
    bias = layer.network_bias_backup if base is not None else layer.bias
    weight = layer.weight if base is None else base
    twin.weight = nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
    twin.bias = (
        None
        if bias is None
        else nn.Parameter(bias.detach().to(dtype, copy=True), requires_grad=False)
    )
    twin.network_current_names, twin.network_weights_backup, twin.network_bias_backup = (
        (),
        None,
        None,
    )
    return twin


def _with_tensors(part, change):
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
    """Relative to the change that the networks make, over all layers they touch; and how many layers each could not do."""
    kind = getattr(torch, dtype)
    wanted = _wanted(names.split(","), [float(s) for s in strengths.split(",")])
    sums = {"ours": 0.0, "host": 0.0, "bias": 0.0}
    change, layers, failed = 0.0, 0, {"ours": 0, "host": 0}
    counted = networks.extra_network_lora.errors
    for layer in _layers():
        if not _parts(layer):
            continue
        name = layer.network_layer_name
        kept = [net.modules[name] for net in networks.loaded_networks if name in net.modules]
        for net in networks.loaded_networks:  # what the files hold in half precision on a GPU
            if name in net.modules and kind != torch.float32:
                net.modules[name] = _with_tensors(net.modules[name], lambda t: t.to(kind))
        parts = _parts(layer)
        exact, ours, host = (_apart(layer, kind) for _ in range(3))
        weight, bias = _exact(exact, parts)
        for which, twin, bring in (
            ("ours", ours, functools.partial(_loras().set_networks, parts=parts, mark=wanted)),
            ("host", host, networks.network_apply_weights),
        ):
            counted.clear()
            bring(twin)
            failed[which] += sum(counted.values())
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
    """For the extension to read the files it does not hold, and to bring every layer of the UNet to this set, its way or ours."""
    began = time.perf_counter()
    _wanted(
        names.split(",") if names else [],
        [float(s) for s in strengths.split(",")] if strengths else [],
    )
    read = time.perf_counter() - began
    layers = _layers()
    merger = _loras()
    began = time.perf_counter()
    if host:
        for layer in layers:
            networks.network_apply_weights(layer)
    else:
        merger.bring_up_to_date()
    return {"read": read, "merged": time.perf_counter() - began}


script_callbacks.on_app_started(
    lambda _, app: app.add_api_route("/accel-probe/errors", errors, methods=["GET"])
)
script_callbacks.on_app_started(
    lambda _, app: app.add_api_route("/accel-probe/seconds", seconds, methods=["GET"])
)


def _loras():
    return lora.Loras(webui.unet_of(webui.current_model()), Bases("auto", webui.say))


def overhead():
    """Milliseconds of everything we do in a UNet call besides computing it, medians of 200, nothing having changed."""
    unet = webui.unet_of(webui.current_model())
    taken, x = accelerated(unet), torch.zeros(2, 4, 16, 16)
    pieces = {
        "conditions": lambda: taken.why_not_now(x),
        "LoRAs": taken.loras.bring_up_to_date,
        "layers": taken.inspector.look,
        "weights": taken.engine.binding.moved,
    }
    return {name: _median(piece) for name, piece in pieces.items()}


def _median(piece):
    times = []
    for _ in range(200):
        began = time.perf_counter()
        piece()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


script_callbacks.on_app_started(
    lambda _, app: app.add_api_route("/accel-probe/overhead", overhead, methods=["GET"])
)
