"""Ways of changing what a UNet computes. Each is a function of a UNet that returns its undoing."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

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
}


# -- settings


def setting(path: str, name: str, value: object) -> Plant:
    def plant(unet: Any) -> Undo:
        return put(unet.get_submodule(path), name, value)

    return plant


def settings(path: str, **values: object) -> Plant:
    def plant(unet: Any) -> Undo:
        return all_of(*(put(unet.get_submodule(path), n, v) for n, v in values.items()))

    return plant


def _eps_of_a_class(unet: Any) -> Undo:
    return put(nn.GroupNorm, "eps", property(lambda _: 0.5))


_ATTENTION = "input_blocks.1.1.transformer_blocks.0.attn2"

SETTINGS: dict[str, Plant] = {
    "dilation": settings("input_blocks.1.0.in_layers.2", dilation=(2, 2), padding=(2, 2)),
    "groups": setting("middle_block.0.in_layers.0", "num_groups", 16),
    "eps": setting("middle_block.0.in_layers.0", "eps", 0.5),
    "eps of a transformer": setting("middle_block.1.norm", "eps", 0.5),
    "eps of a LayerNorm": setting("middle_block.1.transformer_blocks.0.norm2", "eps", 0.5),
    "eps of a class": _eps_of_a_class,
    "heads": setting(_ATTENTION, "heads", 4),
    "dropout": settings("middle_block.0.out_layers.2", p=1.0, training=True),
    "first": settings("input_blocks.0.0", padding=(2, 2), dilation=(2, 2)),
    "out": settings("out.2", padding=(2, 2), dilation=(2, 2)),
    "inplace": setting("input_blocks.1.0.emb_layers.0", "inplace", True),
}


# -- parts


class Louder(nn.Module):
    """A part that somebody puts in."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x * 1.5


def another_activation(unet: Any) -> Undo:
    layers = unet.get_submodule("middle_block.0.in_layers")
    before = layers[1]
    layers[1] = nn.ReLU()
    return lambda: layers.__setitem__(1, before)


def an_equal_activation_comes_back(unet: Any) -> Undo:
    layers = unet.get_submodule("middle_block.0.in_layers")
    layers[1] = nn.ReLU()
    return lambda: layers.__setitem__(1, nn.SiLU())


def popped(unet: Any) -> Undo:
    """Like AnimateDiff: `append` and `insert`, then `pop`."""
    unet.input_blocks[1].append(Louder())
    unet.middle_block.insert(-1, Louder())
    return lambda: (unet.input_blocks[1].pop(-1), unet.middle_block.pop(-2))


def new_table(unet: Any) -> Undo:
    block, before = unet.middle_block, dict(unet.middle_block._modules)
    block._modules = {**before, "3": Louder()}
    return lambda: setattr(block, "_modules", before)


def shorter(unet: Any) -> Undo:
    before = list(unet.middle_block)
    del unet.middle_block[2]
    return lambda: unet.middle_block.append(before[2])


def sliced(unet: Any) -> Undo:
    before = unet.middle_block
    unet.middle_block = before[:2]
    return lambda: setattr(unet, "middle_block", before)


def new_list(unet: Any) -> Undo:
    """The list that comes back is another one with the same blocks."""
    blocks = list(unet.output_blocks)
    unet.output_blocks = nn.ModuleList([blocks[0], *blocks[1:-1], nn.Sequential()])
    louder = unet.output_blocks[-1]
    louder.forward = lambda *given: blocks[-1](*given).abs()
    return lambda: setattr(unet, "output_blocks", nn.ModuleList(blocks))


def inner_list(unet: Any) -> Undo:
    transformer = unet.get_submodule("middle_block.1")
    blocks = list(transformer.transformer_blocks)
    transformer.transformer_blocks = nn.ModuleList([*blocks, *blocks])
    return lambda: setattr(transformer, "transformer_blocks", nn.ModuleList(blocks))


def swapped(unet: Any) -> Undo:
    a, b = unet.middle_block[0], unet.middle_block[2]

    def put_them(first: nn.Module, last: nn.Module) -> None:
        unet.middle_block[0], unet.middle_block[2] = first, last

    put_them(b, a)
    return lambda: put_them(a, b)


def attribute_before_a_part(unet: Any) -> Undo:
    block = unet.middle_block[0]
    vars(block)["in_layers"] = nn.Sequential(block.in_layers, Louder())
    return lambda: vars(block).pop("in_layers")


def attribute_before_a_weight(unet: Any) -> Undo:
    norm = unet.get_submodule("middle_block.0.in_layers.0")
    vars(norm)["weight"] = norm.weight * 1.5
    return lambda: vars(norm).pop("weight")


def other_weights(unet: Any) -> Undo:
    """A table of parameters of its own, with other values."""
    norm = unet.get_submodule("middle_block.0.in_layers.0")
    before = norm._parameters
    norm._parameters = {n: nn.Parameter(p * 1.5, False) for n, p in before.items()}
    return lambda: setattr(norm, "_parameters", before)


class _Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 1.5


def parametrized(unet: Any) -> Undo:
    layer = unet.get_submodule("middle_block.0.in_layers.2")
    parametrize.register_parametrization(layer, "weight", _Twice(), unsafe=True)
    return lambda: parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


PARTS: dict[str, Plant] = {
    f.__name__: f
    for f in (
        another_activation,
        an_equal_activation_comes_back,
        popped,
        new_table,
        shorter,
        sliced,
        new_list,
        inner_list,
        swapped,
        attribute_before_a_part,
        attribute_before_a_weight,
        parametrized,
    )
}
