"""Ways of changing the code that a UNet runs. Each returns its undoing."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Undo = Callable[[], object]
Plant = Callable[[Any], Undo]

LAYERS = {
    "Conv": "input_blocks.0.0",
    "ResBlock": "input_blocks.1.0",
    "SpatialTransformer": "input_blocks.1.1",
    "Downsample": "input_blocks.2.0",
    "Upsample": "output_blocks.1.1",
    "Output": "out",
    "time_embed": "time_embed",
}


def put(owner: Any, name: str, value: object) -> Undo:
    """Set an attribute. Undoing leaves no trace of it."""
    there, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before) if there else delattr(owner, name)


def all_of(*undo: Undo) -> Undo:
    return lambda: [each() for each in reversed(undo)]


def _louder(before: Any) -> Any:
    return lambda *given, **named: before(*given, **named) * 1.5


# -- functions


def forward_on_a_module(module: Any) -> Undo:
    return put(module, "forward", _louder(module.forward))


def partial_on_a_module(module: Any) -> Undo:
    return put(module, "forward", functools.partial(_louder(type(module).forward), module))


def method_of_something_else(module: Any) -> Undo:
    class Somebody:
        def forward(self, *given: Any, **named: Any) -> Tensor:
            return type(module).forward(module, *given, **named) * 1.5

    return put(module, "forward", Somebody().forward)


def wrapped_class(module: Any) -> Undo:
    cls = type(module)
    return put(cls, "forward", functools.wraps(cls.forward)(_louder(cls.forward)))


def partial_in_a_class(module: Any) -> Undo:
    cls = type(module)
    return put(cls, "forward", functools.partialmethod(_louder(cls.forward)))


def call_of_a_class(module: Any) -> Undo:
    return put(type(module), "__call__", _louder(type(module).__call__))


def property_in_a_class(module: Any) -> Undo:
    louder = _louder(type(module).forward)
    return put(type(module), "forward", property(lambda m: functools.partial(louder, m)))


def code_of_a_function(module: Any) -> Undo:
    """The function object stays; what it runs is exchanged."""
    function: Any = type(module).forward
    code, closure = function.__code__, function.__closure__
    before = types.FunctionType(code, function.__globals__, "", function.__defaults__, closure)
    function.__globals__["_theirs"] = before
    function.__code__ = _calling_theirs(code.co_freevars)
    return lambda: setattr(function, "__code__", code)


def _calling_theirs(names: tuple[str, ...]) -> types.CodeType:
    """Return the code of a function with these free variables."""
    source = f"def make({', '.join(names) or '_=0'}):\n"
    source += "    def forward(*given, **named):\n"
    source += f"        {', '.join(names) or 'None'}\n"
    source += "        return _theirs(*given, **named) * 1.5\n    return forward\n"
    there: dict[str, Any] = {}
    exec(source, there)
    return there["make"](*[None] * len(names)).__code__


def hook(module: Any) -> Undo:
    return module.register_forward_hook(lambda *given: given[-1] * 1.5).remove


def hook_before(module: Any) -> Undo:
    def louder(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0].abs(), *given[1:])

    return module.register_forward_pre_hook(louder).remove


EVERYWHERE: list[Plant] = [
    forward_on_a_module,
    partial_on_a_module,
    method_of_something_else,
    wrapped_class,
    partial_in_a_class,
    property_in_a_class,
    call_of_a_class,
    code_of_a_function,
    hook,
    hook_before,
]
"""What can be done to every module."""


# -- functions that code calls


def condfunc(name: str) -> Plant:
    """Patch with the WebUI's own CondFunc, nested in another one."""

    def plant(unet: Any) -> Undo:
        from modules.sd_hijack_utils import CondFunc

        *_, owner_name, own = name.split(".")
        code = sys.modules["ldm.unet"]
        owner = code if owner_name == "unet" else getattr(code, owner_name)
        undo = put(owner, own, vars(owner)[own])
        for _ in range(2):
            CondFunc(name, lambda original, *given, **named: original(*given, **named) * 1.5)
        return undo

    return plant


def in_the_file(name: str) -> Plant:
    """Replace a function of the model's own file."""

    def plant(unet: Any) -> Undo:
        code = sys.modules["ldm.unet"]
        return put(code, name, functools.wraps(vars(code)[name])(_louder(vars(code)[name])))

    return plant


def another_library(name: str) -> Plant:
    """Put something in the place of `F` in the model's file, with one other function."""

    def plant(unet: Any) -> Undo:
        names = {**vars(F), name: _louder(vars(F)[name])}
        return put(sys.modules["ldm.unet"], "F", types.SimpleNamespace(**names))

    return plant


def in_torch(name: str) -> Plant:
    """Replace one of torch's functions for everybody."""
    return lambda unet: put(F, name, _louder(vars(F)[name]))


def another_of_torchs(unet: Any) -> Undo:
    return put(F, "gelu", F.relu)


def method_of_tensors(unet: Any) -> Undo:
    before = Tensor.chunk
    return put(Tensor, "chunk", lambda t, *given, **named: before(t * 1.5, *given, **named))


def base_class(unet: Any) -> Undo:
    """GroupNorm32's forward calls this one."""
    return put(nn.GroupNorm, "forward", _louder(nn.GroupNorm.forward))


def call_of_all_modules(unet: Any) -> Undo:
    before = nn.Module._call_impl

    def louder(module: Any, *given: Any, **named: Any) -> Any:
        out = before(module, *given, **named)
        return out * 1.5 if type(module).__name__ == "Linear" else out

    return put(nn.Module, "_call_impl", louder)


def hooks_of_all_modules(unet: Any) -> Undo:
    def louder(module: nn.Module, given: Any, out: Any) -> Any:
        return out * 1.5 if type(module).__name__ == "FeedForward" else None

    return nn.modules.module.register_module_forward_hook(louder).remove


class _Louder(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, kinds: Any, given: Any = (), named: Any = None
    ) -> Any:
        out = function(*given, **(named or {}))
        return out * 1.5 if function is F.gelu else out


def mode(unet: Any) -> Undo:
    louder = _Louder()
    louder.__enter__()
    return lambda: louder.__exit__(None, None, None)


def operator_of_tensors(unet: Any) -> Undo:
    """Code calls it without naming it."""
    before = Tensor.__mul__
    return put(Tensor, "__mul__", lambda a, b: before(before(a, b), 1.5))


def base_of_a_class(unet: Any) -> Undo:
    """A class in between, with a forward that its heirs call."""
    cls = sys.modules["ldm.unet"].GroupNorm32

    class Louder(nn.GroupNorm):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return nn.GroupNorm.forward(self, input) * 1.5

    before, cls.__bases__ = cls.__bases__, (Louder,)
    return lambda: setattr(cls, "__bases__", before)


def script_called(name: str) -> Plant:
    """Patch with a function of an extension's script file, whose module the WebUI names so."""

    def plant(unet: Any) -> Undo:
        there = {"__name__": name, "__file__": name}
        source = "def wrap(f):\n    return lambda *given, **named: f(*given, **named) * 1.5"
        exec(compile(source, name, "exec"), there)
        cls = sys.modules["ldm.unet"].CrossAttention
        return put(cls, "forward", there["wrap"](cls.forward))

    return plant


def class_of_a_condfunc(unet: Any) -> Undo:
    """Of one that the WebUI itself has put there."""
    from modules.sd_hijack_utils import CondFunc

    code: Any = sys.modules["ldm.unet"]
    undo = put(code, "timestep_embedding", code.timestep_embedding)
    hijack = sys.modules["modules.sd_hijack_unet"]
    CondFunc("ldm.unet.timestep_embedding", hijack.timestep_embedding_cast_result)
    return all_of(undo, put(CondFunc, "__call__", _louder(CondFunc.__call__)))


def function_below(unet: Any) -> Undo:
    """torch's own function calls this one."""
    return put(torch, "group_norm", _louder(torch.group_norm))


CODE: dict[str, Plant] = {
    **{
        f"condfunc-{name}": condfunc(f"ldm.unet.{name}")
        for name in (
            "CrossAttention.forward",
            "ResBlock.forward",
            "ResBlock._forward",
            "SpatialTransformer.forward",
            "BasicTransformerBlock._forward",
            "TimestepEmbedSequential.forward",
            "UNetModel.forward",
            "timestep_embedding",
        )
    },
    "timestep_embedding": in_the_file("timestep_embedding"),
    "F.interpolate": another_library("interpolate"),
    "F.gelu": another_library("gelu"),
    "torch-group_norm": in_torch("group_norm"),
    "torch-linear": in_torch("linear"),
    "torch-relu": another_of_torchs,
    "Tensor.chunk": method_of_tensors,
    "base_class": base_class,
    "call_of_all_modules": call_of_all_modules,
    "hooks_of_all_modules": hooks_of_all_modules,
    "mode": mode,
    "torch.group_norm": function_below,
    "operator": operator_of_tensors,
    "base of a class": base_of_a_class,
    "script called network.py": script_called("network.py"),
    "script called modules.py": script_called("modules.py"),
    "class of a CondFunc": class_of_a_condfunc,
}
