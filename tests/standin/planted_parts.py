"""Ways of changing a UNet's settings and parts. Each returns its undoing."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from .planted_code import Plant, Undo, all_of, put

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


def another_dict(unet: Any) -> Undo:
    """The module's whole table of attributes is another one."""
    conv = unet.get_submodule("middle_block.0.in_layers.2")
    before = conv.__dict__
    conv.__dict__ = {**before, "dilation": (2, 2), "padding": (2, 2)}
    return lambda: setattr(conv, "__dict__", before)


class _Lying(dict[str, Any]):
    """A table that answers with other things than it holds."""

    def values(self) -> Any:
        return [*super().values(), Louder()]

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name) * 1.5


def lying_parts(unet: Any) -> Undo:
    return put(unet.middle_block, "_modules", _Lying(unet.middle_block._modules))


def lying_weights(unet: Any) -> Undo:
    norm = unet.get_submodule("middle_block.0.in_layers.0")
    return put(norm, "_parameters", _Lying(norm._parameters))


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
        another_dict,
        lying_parts,
        lying_weights,
        parametrized,
    )
}
