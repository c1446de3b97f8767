"""Reads the options with which Forge and reForge call a UNet: they say what extensions take part.

The keys are those of `backend/nn/unet.py` and `backend/patcher/unet.py` (Forge), and of
`ldm_patched/ldm/modules/diffusionmodules/openaimodel.py` (reForge).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...model.unet import Control
from ...runtime.accelerated import Call, is_plain
from .protocol import Reading

_INFORMING = frozenset(
    (
        *("cond_or_uncond", "cond_mark", "cond_indices", "uncond_indices", "uuids"),
        *("sigmas", "sample_sigmas", "original_shape", "activations_shape"),
        *("block", "block_index", "transformer_index", "n_heads", "dim_head"),
        *("callbacks", "controlnet_model_function_wrapper"),  # of the sampler and of ControlNet
    )
)
"""Options that change nothing by themselves."""

_BETWEEN = frozenset(("block_modifiers", "block_inner_modifiers"))
_BETWEEN_PATCHES = frozenset(
    ("input_block_patch", "input_block_patch_after_skip", "output_block_patch")
)
"""What works between layers, so that each layer is computed as ever."""

_INSIDE_PATCHES = frozenset(
    ("attn1_patch", "attn2_patch", "attn1_output_patch", "attn2_output_patch", "middle_patch")
)
_REPLACED = frozenset(("attn1", "attn2"))
"""What works inside of transformers: all of them, or those of some blocks."""

_BLOCKS = {"input_blocks": "input", "middle_block": "middle", "output_blocks": "output"}


def read(call: Call) -> Reading:
    """Return what a call asks for. Its tensors and options are left as they are."""
    named = dict(zip(("y", "control", "transformer_options"), call.rest, strict=False))
    named |= {name: value for name, value in call.named.items() if value is not None}
    options, control = named.pop("transformer_options", {}), named.pop("control", None)
    named.pop("control_model", None)  # the ControlNet that has made `control`
    named |= {type(value).__name__: value for value in call.rest[3:]}
    plain = call._replace(rest=(), named=named)
    between, unknown = [], []
    for name, is_known in _taking_part(options):
        (between if is_known else unknown).append(name)
    if unknown:
        names = ", ".join(unknown)
        refused = f"this call gives the UNet more than compiled code knows: {names}"
        return Reading(plain, refused=refused)
    if not between and _is_control(control):
        return Reading(plain, _control(control))
    if control is not None:
        between.append("control")
    names = ", ".join(between)
    return Reading(plain, led=f"extensions take part in the UNet ({names})" if names else None)


def _is_control(control: Any) -> bool:
    """Return whether this is nothing but lists of tensors, by the names of `Control`."""
    return (
        isinstance(control, dict)
        and control.keys() <= {*Control._fields}
        and all(t is None or is_plain(t) for each in control.values() for t in each)
    )


def _control(control: Mapping[str, list[Any]]) -> Control:
    """Return what is added. The UNet takes it from the end of the lists, which are left as is."""
    return Control(**{name: tuple(reversed(each)) for name, each in control.items()})


def _taking_part(options: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Yield the options that are not empty, and whether layers can be compiled beside them."""
    for name, value in options.items():
        if name in _INFORMING or _is_empty(value):
            continue
        if name == "patches":
            known = _BETWEEN_PATCHES | _INSIDE_PATCHES
        elif name == "patches_replace":
            known = _REPLACED
        else:
            yield name, name in _BETWEEN
            continue
        yield from ((each, each in known) for each in value if not _is_empty(value[each]))


def _is_empty(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    return value is None or (isinstance(value, (list, tuple, set)) and not value)


def is_touched(layer: str, transformer: bool, options: Mapping[str, Any]) -> bool:
    """Return whether options change what a layer computes, given its name as `input_blocks.4.1`."""
    if options.get("group_norm_wrapper") is not None:
        return True
    if not transformer:
        return False
    if any(options.get("patches", {}).get(name) for name in _INSIDE_PATCHES):
        return True
    group, number, *_ = layer.split(".")
    block = (_BLOCKS.get(group), int(number) if group != "middle_block" else 0)
    replaced = options.get("patches_replace", {})
    return any(place[:2] == block for name in _REPLACED for place in replaced.get(name, ()))
