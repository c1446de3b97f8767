"""How the WebUI behaves at every point where the stand-in stands in for it: computed in both, and compared in tests/webui/test_standin.py.

Imported there by an extension (tests/webui/standin_probe) that knows no `tests` package: so it imports nothing of ours at the top.
Every function leaves the WebUI as it was. Answers are plain JSON.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from modules import call_queue, devices, script_callbacks, scripts, sd_models, sd_unet, shared
from torch import Tensor, nn

heard: list[list[Any]] = []  # what was called in a job, in order


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


# -- settings, devices, the lock


def options() -> dict[str, Any]:
    told: list[int] = []
    info = shared.OptionInfo(5, "A label", None, {"minimum": 0})
    same = info.info("more")
    info.onchange = lambda: told.append(shared.opts.standin_probe)
    given = {"standin_probe": info}
    section = shared.options_section(("probe", "Probe"), given)
    shared.opts.data_labels["standin_probe"] = info
    out: dict[str, Any] = {
        "info": [
            same is info,
            "more" in info.comment_after,
            info.default,
            info.label,
            info.component_args,
        ],
        "section": [section is given, list(info.section or ())],
        "default": shared.opts.standin_probe,
        "changes": [shared.opts.set("standin_probe", value) for value in (7, 7, 8)],
        "told": told,
        "label added to the templates alone": [],
    }
    info.onchange = lambda: 1 / 0  # type: ignore[assignment,return-value]
    out["an onchange that fails"] = [shared.opts.set("standin_probe", 9), shared.opts.standin_probe]
    out["directly"] = _directly()
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
    out["ours"] = {
        k: [v.section, v.default, callable(v.onchange)]
        for k, v in shared.opts.data_labels.items()
        if k.startswith("accel_")
    }
    out["theirs"] = [shared.opts.lora_functional, shared.opts.sd_unet, shared.opts.upcast_attn]
    return out


def _directly() -> list[Any]:
    shared.opts.data["standin_probe"] = 11
    return [shared.opts.standin_probe, shared.opts.data["standin_probe"]]


def lock() -> list[Any]:
    lock = call_queue.queue_lock
    out = [lock.acquire(blocking=False), lock.acquire(blocking=False)]
    lock.release()
    with lock:
        out.append(lock.acquire(blocking=False))
    out.append(lock.acquire(blocking=False))
    lock.release()
    return out


def device() -> dict[str, Any]:
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
    """One of another extension's comes and goes; ours is asked instead of the model's own class forward."""
    unet = sd_models.model_data.sd_model.model.diffusion_model
    told: list[str] = []

    class Theirs(sd_unet.SdUnet):
        def forward(self, x: Any, timesteps: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
            return [x, timesteps, context, list(args), kwargs]

        def activate(self) -> None:
            told.append("activate")

        def deactivate(self) -> None:
            told.append("deactivate")

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
    label = current.option.label
    return {
        "before": before,
        "label": label,
        "answer": answer,
        "named": named,
        "told": told,
        "after": sd_unet.current_unet,
    }


# -- callbacks, scripts and the order of things in a job


def listen() -> type:
    """Called when scripts are loaded: hears what follows. Returns a script class for the caller's own module."""
    script_callbacks.on_app_started(
        lambda *args: heard.append(["app_started", len(args), hasattr(args[1], "add_api_route")])
    )
    script_callbacks.on_model_loaded(_model_loaded)
    script_callbacks.on_cfg_denoiser(lambda *args: heard.append(["cfg_denoiser", len(args)]))
    script_callbacks.on_cfg_denoised(lambda *args: heard.append(["cfg_denoised", len(args)]))

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
    """Whether a job holds the lock, gradients are on, and how many networks are loaded."""
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
    return [what for what in heard if what[0] == "app_started"][:1] + [
        what for what in heard if what[0] == "model_loaded"
    ][:1]


def script_class() -> dict[str, Any]:
    names = ("title", "show", "ui", "before_process", "before_process_batch", "postprocess_batch")
    return {
        name: [
            [p.name, p.kind.name]
            for p in inspect.signature(getattr(scripts.Script, name)).parameters.values()
        ]
        for name in names
    }


# -- the UNet


def unet() -> dict[str, Any]:
    """Of the loaded one, whatever its size: classes, names, calls."""
    from lib_accel.host.inspection import HOME

    whole = sd_models.model_data.sd_model.model.diffusion_model
    block = whole.input_blocks[1]
    layers = {
        "ResBlock": block[0],
        "SpatialTransformer": block[1],
        "out": whole.out,
        "time_embed": whole.time_embed,
    }
    layers |= {
        "first": whole.input_blocks[0][0],
        "Downsample": _first(whole, "Downsample"),
        "Upsample": _first(whole, "Upsample"),
    }
    forwards = [
        getattr(type(m), name).__module__
        for m in whole.modules()
        for name in ("forward", "_forward")
        if hasattr(type(m), name)
    ]
    return {
        "classes": {
            name: [c.__name__ for c in type(layer).__mro__ if c is not object]
            for name, layer in layers.items()
        },
        "leaves": {name: _leaves(layer) for name, layer in layers.items()},
        "blocks": [
            type(b).__name__
            for b in (
                whole,
                whole.input_blocks,
                block,
                whole.middle_block,
                whole.output_blocks,
                whole.output_blocks[0],
            )
        ],
        "foreign forwards": sorted({f.partition(".")[0] for f in forwards} - set(HOME)),
        "joining": _joining(whole),
        "heads": type(block[1].transformer_blocks[0].attn1.heads).__name__,
        "gradients": sorted({p.requires_grad for p in whole.parameters()}),
        "training": whole.training,
        "first layer's name": block[0].in_layers[2].network_layer_name,
    }


def _joining(whole: Any) -> list[Any]:
    """What stands for torch in the UNet's own file, which extensions replace."""
    th = vars(sys.modules[type(whole).__module__])["th"]
    a, b = torch.zeros(1, 2, 4, 4), torch.ones(1, 3, 3, 4)
    return [type(th).__name__, th.cat.__module__, list(th.cat([a, b], dim=1).shape)]


def _first(network: nn.Module, name: str) -> nn.Module:
    return next(m for m in network.modules() if type(m).__name__ == name)


def _leaves(layer: nn.Module) -> dict[str, list[Any]]:
    """By name, the parts with parameters: torch's class they are, and the dimensions of each parameter."""
    out = {}
    for name, module in layer.named_modules():
        own = {k: p.ndim for k, p in module.named_parameters(recurse=False)}
        if own:
            torchs = next(
                c.__name__ for c in type(module).__mro__ if c.__module__.startswith("torch.")
            )
            out[name] = [
                torchs,
                own,
                getattr(module, "eps", None),
                getattr(module, "padding_mode", None),
            ]
    return out


@torch.no_grad()
def unet_calls() -> dict[str, Any]:
    """How the class forward of the UNet calls blocks, and a block its layers; sizes that halve to odd ones."""
    whole = sd_models.model_data.sd_model.model.diffusion_model
    block, last = whole.input_blocks[1], whole.output_blocks[-1]
    watched = {"input": block, "middle": whole.middle_block, "output": last, "out": whole.out}
    watched |= {
        "ResBlock": block[0],
        "SpatialTransformer": block[1],
        "Downsample": _first(whole, "Downsample"),
    }
    seen: dict[str, list[Any]] = {}

    def see(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[name] = [[getattr(a, "ndim", None) for a in args], list(kwargs)]

        return hook

    hooks = [
        m.register_forward_pre_hook(see(name), with_kwargs=True) for name, m in watched.items()
    ]
    try:
        shapes = [
            list(type(whole).forward(whole, torch.zeros(1, 4, *size), *_small(whole)).shape)
            for size in ((16, 16), (9, 13))
        ]
    finally:
        for hook in hooks:
            hook.remove()
    return {"seen": seen, "shapes": shapes, "wrapper": _wrapper(whole)}


def _small(whole: Any) -> list[Tensor]:
    context = whole.input_blocks[1][1].transformer_blocks[0].attn2.to_k.weight.shape[1]
    return [torch.tensor([3.0]), torch.zeros(1, 77, context)]


def _wrapper(whole: Any) -> list[Any]:
    """How the model calls its UNet, when the sampler calls the model."""
    calls: list[list[Any]] = []
    before = vars(whole).get("forward")

    def recorder(*args: Any, **kwargs: Any) -> Tensor:
        calls.append([len(args), list(kwargs)])
        return args[0]

    whole.forward = recorder
    timesteps, context = _small(whole)
    x = torch.ones(1, 4, 8, 8)
    try:
        answer = sd_models.model_data.sd_model.apply_model(x, timesteps, {"c_crossattn": [context]})
    finally:
        del whole.forward
        if before is not None:
            whole.forward = before
    return [calls, bool(torch.equal(answer, x))]


def webui() -> dict[str, Any]:
    return {
        f.__name__: f()
        for f in (options, lock, device, other_unets, started, script_class, unet, unet_calls)
    }
