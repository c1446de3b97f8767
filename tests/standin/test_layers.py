"""A layer that another extension has changed runs its own code, and the status says why.

The other layers stay compiled, and all of them are once the change is undone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .driver import drive
from .host import Host, counted
from .test_driven import DRIVEN

BLOCK = "input_blocks.1.1.transformer_blocks.0"
Undo = Callable[[], object]


def _forward(unet: nn.Module) -> Undo:
    """Change a forward, like HyperTile."""
    attention: Any = unet.get_submodule(f"{BLOCK}.attn1")
    original = attention.forward
    attention.forward = lambda x, context=None: original(x, context) * 2
    # the bound method of the class, which many extensions leave behind
    return lambda: setattr(attention, "forward", original)


def _inner_forward(unet: nn.Module) -> Undo:
    """Change an inner forward, like the reference modes of sd-webui-controlnet."""
    block: Any = unet.get_submodule(BLOCK)
    original = block._forward
    block._forward = lambda x, context=None: original(x, context) * 2
    return lambda: delattr(block, "_forward")


def _whole_layer(unet: nn.Module) -> Undo:
    layer: Any = unet.get_submodule("middle_block.0")
    ours = vars(layer)["forward"]
    layer.forward = lambda x, emb: type(layer).forward(layer, x, emb) * 2
    return lambda: setattr(layer, "forward", ours)


def _hook(unet: nn.Module) -> Undo:
    return (
        unet.get_submodule("output_blocks.2.0.out_layers.3")
        .register_forward_hook(lambda *given: given[-1] * 2)
        .remove
    )


def _hook_before(unet: nn.Module) -> Undo:
    return (
        unet.get_submodule(f"{BLOCK}.ff")
        .register_forward_pre_hook(lambda _, given: (given[0] * 2,))
        .remove
    )


def _padding(unet: nn.Module) -> Undo:
    """Change the padding, like tiling."""
    layers: list[Any] = [m for m in unet.modules() if isinstance(m, nn.Conv2d)]

    def pad(mode: str) -> None:
        for layer in layers:
            layer.padding_mode = mode

    for layer in layers:  # torch keeps this for the other padding modes
        layer._reversed_padding_repeated_twice = [layer.padding[0]] * 4
    pad("circular")
    return lambda: pad("zeros")


def _one_way_tiling(unet: nn.Module) -> Undo:
    """Replace what follows the padding, like asymmetric tiling; the padding stays zero."""
    convolution: Any = unet.get_submodule("middle_block.0.in_layers.2")
    original = convolution._conv_forward
    convolution._conv_forward = lambda x, weight, bias: original(x.roll(1, -1), weight, bias)
    return lambda: setattr(convolution, "_conv_forward", original)


def _other_part(unet: nn.Module) -> Undo:
    block: Any = unet.get_submodule(BLOCK)
    before = block.ff
    block.ff = nn.Sequential(before, nn.Tanh())
    return lambda: setattr(block, "ff", before)


def _other_class(unet: nn.Module) -> Undo:
    """Give a block another class, like token merging."""
    block: Any = unet.get_submodule(BLOCK)
    before = type(block)
    block.__class__ = type(
        "Merging",
        (before,),
        {"_forward": lambda self, x, context=None: before._forward(self, x, context) * 2},
    )
    return lambda: setattr(block, "__class__", before)


def _class_forward(unet: nn.Module) -> Undo:
    cls: Any = type(unet.get_submodule(BLOCK))
    before = cls._forward
    cls._forward = lambda self, x, context=None: before(self, x, context) * 2
    return lambda: setattr(cls, "_forward", before)


def _class_forward_under_its_name(unet: nn.Module) -> Undo:
    cls: Any = type(unet.get_submodule(BLOCK))
    before = cls._forward
    cls._forward = functools.wraps(before)(
        lambda self, x, context=None: before(self, x, context) * 2
    )
    return lambda: setattr(cls, "_forward", before)


CHANGES = [
    (_forward, "1 layer is not accelerated: the forward of a CrossAttention was replaced"),
    (
        _inner_forward,
        "1 layer is not accelerated: the forward of a BasicTransformerBlock was replaced",
    ),
    (_whole_layer, "1 layer is not accelerated: the forward of a ResBlock was replaced"),
    (_hook, "1 layer is not accelerated: a Conv2d has hooks"),
    (_hook_before, "1 layer is not accelerated: a FeedForward has hooks"),
    (_one_way_tiling, "1 layer is not accelerated: the forward of a Conv2d was replaced"),
    (_padding, "16 layers are not accelerated: tiling changes the padding of convolutions"),
    (_other_part, "1 layer is not accelerated: a part of a BasicTransformerBlock was replaced"),
    (_other_class, "1 layer is not accelerated: a BasicTransformerBlock became a Merging"),
    (_class_forward, "4 layers are not accelerated: the class BasicTransformerBlock was patched"),
    (
        _class_forward_under_its_name,
        "4 layers are not accelerated: the class BasicTransformerBlock was patched",
    ),
]


def _expected(host: Host, change: Callable[[nn.Module], Undo]) -> Tensor:
    """Return what the WebUI alone computes with the change."""
    host.opts.set("accel_enable", False)
    undo = change(host.unet) if change is not _whole_layer else _unassisted(host)
    out = host.call()
    undo()
    host.opts.set("accel_enable", True)
    return out


def _unassisted(host: Host) -> Undo:
    layer: Any = host.unet.get_submodule("middle_block.0")
    layer.forward = lambda x, emb: type(layer).forward(layer, x, emb) * 2
    return lambda: delattr(layer, "forward")


@pytest.mark.parametrize(
    ("change", "reason"), CHANGES, ids=lambda v: v.__name__.strip("_") if callable(v) else ""
)
@pytest.mark.parametrize("driven", [False, True], ids=["", "driven"])
def test_a_changed_layer_runs_its_own_code(
    host: Host, change: Callable[[nn.Module], Undo], reason: str, driven: bool
) -> None:
    expected, plain = _expected(host, change), host.call()
    leave = drive(host.unet) if driven else None
    undo = change(host.unet)
    with counted(host, accelerated_calls=1, host_calls=0):
        out = host.call()
    assert host.status()["reason"] == (f"{DRIVEN}; {reason}" if driven else reason)
    assert torch.allclose(out, expected, atol=1e-5)
    assert not torch.allclose(out, plain, atol=1e-4)
    undo()
    if leave:
        leave()
    with counted(host, accelerated_calls=1, host_calls=0):
        assert torch.equal(host.call(), plain)
    assert host.status()["reason"] is None


def _block_forward(unet: nn.Module) -> Undo:
    """Change a block's forward, like DeepCache: it is no longer the sum of its layers."""
    block: Any = unet.get_submodule("output_blocks.1")
    original = block.forward
    block.forward = lambda h, emb, context=None: original(h, emb, context) * 2
    return lambda: delattr(block, "forward")


def _block_hook(unet: nn.Module) -> Undo:
    return (
        unet.get_submodule("input_blocks.1")
        .register_forward_hook(lambda *given: given[-1] * 2)
        .remove
    )


def _block_class(unet: nn.Module) -> Undo:
    cls: Any = type(unet.get_submodule("input_blocks.1"))
    before = cls.forward
    cls.forward = lambda self, h, emb, context=None: before(self, h, emb, context) * 1.5
    return lambda: setattr(cls, "forward", before)


def _unet_class(unet: nn.Module) -> Undo:
    """Patch the class forward of the UNet, like FreeU once did."""
    cls: Any = type(unet)
    before = cls.forward
    cls.forward = lambda self, *given, **named: before(self, *given, **named) * 2
    return lambda: setattr(cls, "forward", before)


def _joining(unet: nn.Module) -> Undo:
    """Replace `cat` in the UNet's own file, like FreeU."""
    code: Any = sys.modules[type(unet).__module__]
    before = code.th

    class Theirs:
        def cat(self, tensors: list[Tensor], dim: int = 0) -> Tensor:
            return before.cat([tensors[0] * 2, tensors[1]], dim)

        def __getattr__(self, name: str) -> Any:
            return getattr(before, name)

    code.th = Theirs()
    return lambda: setattr(code, "th", before)


FRAMES = [
    (_block_forward, "the forward of a TimestepEmbedSequential was replaced"),
    (_block_hook, "a TimestepEmbedSequential has hooks"),
    (_block_class, "the class TimestepEmbedSequential was patched"),
    (_unet_class, "the class UNetModel was patched"),
    (_joining, "how the decoder joins its inputs was patched"),
]


@pytest.mark.parametrize(
    ("change", "reason"), FRAMES, ids=lambda v: v.__name__.strip("_") if callable(v) else ""
)
def test_a_change_around_the_layers_keeps_them_compiled(
    host: Host, change: Callable[[nn.Module], Undo], reason: str
) -> None:
    """The UNet's own code then leads from layer to layer, and the layers stay compiled."""
    expected, plain = _expected(host, change), host.call()
    undo = change(host.unet)
    with counted(host, accelerated_calls=1, host_calls=0):
        out = host.call()
    assert host.status()["reason"] == f"{reason}: compiled layer by layer"
    assert torch.allclose(out, expected, atol=1e-5)
    assert not torch.allclose(out, plain, atol=1e-4)
    undo()
    with counted(host, accelerated_calls=1, host_calls=0):
        assert torch.equal(host.call(), plain)
    assert host.status()["reason"] is None
