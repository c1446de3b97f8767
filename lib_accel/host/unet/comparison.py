"""Computes something both ways, by the WebUI's code and by ours, and compares the results."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import AccelError
from ...model.precision import wider
from ...runtime.status import Counters
from ..clock import milliseconds, now

_NOISE = {
    "step": {torch.float32: 512, torch.float16: 8, torch.bfloat16: 8},
    "layer": {torch.float32: 64, torch.float16: 4, torch.bfloat16: 4},
}
"""The largest relative difference (L2) that is noise, in roundings of the dtype (its eps).

Two correct ways were 27 (float32) and 2 roundings apart in a step of SD1, 4 and 0.7 in a layer,
with random weights. Trained weights amplify more.
"""

_ROUNDING = 0.6
"""The relative error (L2) of one rounding, in eps: the bound of tests/test_merge.py."""


class Both(NamedTuple):
    """The seconds of a step that both ways have computed, as they had before."""

    theirs_s: float
    ours_s: float
    backend: str  # that computed it our way
    shape: tuple[int, ...]  # of its latents, [B, 4, H/8, W/8]


@dataclass
class Tally:
    """What the witnesses of one UNet and its control networks have done and found."""

    witnessed: int = 0
    worst_error: float = 0.0  # relative, of all steps and layers that were compared
    seconds: float = 0.0  # beyond those that our way takes
    times: deque[Both] = field(default_factory=functools.partial(deque, maxlen=100))
    said: str | None = None  # the last difference, in one line


@dataclass
class AttachmentCounters:
    """What one attachment has done, kept after it is removed: totals never decrease."""

    engine: Counters
    host_calls: int = 0
    lora_merges: int = 0
    tally: Tally = field(default_factory=Tally)

    def to_dict(self) -> dict[str, int]:
        """Return the counters that the status shows."""
        e = self.engine
        return {
            "compiles": e.compiles,
            "binds": e.binds,
            "lora_merges": self.lora_merges,
            "accelerated_calls": e.accelerated_calls,
            "eager_calls": e.eager_calls,
            "host_calls": self.host_calls,
        }


def summed(tallies: Sequence[Tally], current: Tally) -> dict[str, Any]:
    """Return the fields of the status, of all UNets there were; times are the current one's."""
    last = current.times[-1] if current.times else None
    times = [t for t in current.times if last and t[2:] == last[2:]]  # only these can be compared
    ours_s = sum(t.ours_s for t in times)
    return {
        "witnessed": sum(t.witnessed for t in tallies),
        "worst_error": max((t.worst_error for t in tallies), default=0.0),
        "witness_seconds": sum(t.seconds for t in tallies),
        "speedup": sum(t.theirs_s for t in times) / ours_s if ours_s else None,
        "difference": current.said,
    }


def noise(what: str, expected: Tensor, weights: torch.dtype) -> float:
    """Return the relative difference that two correct ways may have, for a "step" or a "layer"."""
    dtype = max(expected.dtype, weights, key=lambda d: torch.finfo(d).eps)
    if dtype == torch.float32 and expected.device.type != "cpu":
        dtype = torch.float16  # TF32 and autocast round as coarsely
    return _NOISE[what][dtype] * torch.finfo(dtype).eps


def difference(value: Tensor, expected: Tensor) -> float:
    """Return `||value - expected|| / ||expected||`. NaN equals NaN, infinity itself.

    1, nothing is right, where a NaN stands for a number or the shapes differ.
    """
    if value.shape != expected.shape:
        return 1.0
    wide = wider(expected.dtype, expected.device)
    a, b = value.to(wide), expected.to(wide)
    same = (a == b) | (a.isnan() & b.isnan())
    if same.all():
        return 0.0
    error = (a - b).masked_fill(same, 0).norm() / b.masked_fill(same & ~b.isfinite(), 0).norm()
    return error.item() if error.isfinite() else 1.0


class RandomStates:
    """The states of all random generators that code of a step may draw from."""

    def __init__(self, device: torch.device):
        self._numpy = sys.modules.get("numpy")
        self._python, self._cpu = random.getstate(), torch.get_rng_state()
        self._arrays = self._numpy.random.get_state() if self._numpy else None
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._mps = torch.mps.get_rng_state() if device.type == "mps" else None

    def restore(self) -> None:
        """Put all generators back to these states."""
        random.setstate(self._python)
        torch.set_rng_state(self._cpu)
        if self._numpy:
            self._numpy.random.set_state(self._arrays)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)


@dataclass(frozen=True)
class Outcome:
    """What both ways gave. Of a way that failed there is no result, and `problem` says why."""

    theirs: Tensor | None
    ours: Tensor | None
    theirs_s: float
    ours_s: float
    problem: str | None = None


def both_ways(
    theirs: Callable[[], Tensor], ours: Callable[[], Tensor], device: torch.device
) -> Outcome:
    """Compute `theirs`, then `ours`. Random generators are left as after one of them.

    Where `theirs` fails, e.g. for want of memory, the outcome is that of `ours` alone, which may
    raise.
    """
    before = RandomStates(device)
    expected, theirs_s, problem = _timed(theirs, device)
    if expected is None:
        before.restore()
        return Outcome(None, ours(), theirs_s, 0.0, problem)
    after = RandomStates(device)
    out, ours_s, problem = _timed(ours, device, (Exception,))  # theirs has worked
    after.restore()
    return Outcome(expected, out, theirs_s, ours_s, problem)


def _timed(
    way: Callable[[], Tensor],
    device: torch.device,
    errors: tuple[type[Exception], ...] = (RuntimeError, AccelError),
) -> tuple[Tensor | None, float, str | None]:
    """Return what a way computes and the seconds that took, or why it cannot.

    It begins on an idle device, so that its launches count. Its error would hold all its
    activations.
    """
    _wait(device)
    began, out, problem = now(device), None, None
    try:
        out = way()
    except errors as error:
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    if device.type != "cuda":
        _wait(device)
    return out, milliseconds(began, now(device)) / 1000, problem


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# -- merged weights


def merged_otherwise(layers: Iterable[Any], extension: Any) -> str | None:
    """Return what we have merged unlike the Lora extension, and how far off; None where nothing.

    One layer of each type of network and kind of layer is merged by the extension's own code, on a
    copy.
    """
    for (network, kind), (layer, parts) in _samples(layers, extension).items():
        error = _merge_error(layer, parts, extension)
        eps = max(torch.finfo(t.dtype).eps for t in (layer.weight, *_tensors(parts)))
        allowed = _ROUNDING * eps * (1 + 2 * len(parts))  # ours, and for each network two of theirs
        if error > allowed:
            return f"{network} in a {kind}, by {error:.1e} where {allowed:.1e} is rounding"
    return None


def _samples(layers: Iterable[Any], extension: Any) -> dict[tuple[str, str], tuple[Any, list[Any]]]:
    """Return a layer, and its part of each network, by type of network and kind of layer."""
    found: dict[tuple[str, str], tuple[Any, list[Any]]] = {}
    for layer in layers:
        if getattr(layer, "network_weights_backup", None) is None:
            continue  # nothing was merged into it
        name = layer.network_layer_name
        parts = [net.modules[name] for net in extension.loaded_networks if name in net.modules]
        for part in parts:
            found.setdefault((type(part).__name__, type(layer).__name__), (layer, parts))
    return found


@torch.no_grad()
def _merge_error(layer: Any, parts: list[Any], extension: Any) -> float:
    """Return how far our weight and bias are from the extension's, relative to what was added.

    0 where its code fails (OFT does in half precision): then there is nothing to compare.
    """
    twin, wide = _at_base(layer), wider(layer.weight.dtype, layer.weight.device)
    base, errors = twin.weight.detach().to(wide, copy=True), extension.extra_network_lora.errors
    counted = dict(errors)
    with _copied(extension.loaded_networks, layer.network_layer_name):
        extension.network_apply_weights(twin)
    failed = errors != counted
    errors.clear()
    errors.update(counted)
    if failed:
        return 0.0
    theirs = twin.weight.to(wide)
    size = base.norm() + (theirs - base).norm()
    error = float((layer.weight.to(wide) - theirs).norm() / size)
    if layer.bias is None or twin.bias is None:
        return error if layer.bias is twin.bias else 1.0
    return max(error, difference(layer.bias, twin.bias))


@contextlib.contextmanager
def _copied(networks: Iterable[Any], name: str) -> Iterator[None]:
    """Put copies in the place of what networks have for a layer: some write into their tensors."""
    before = [(net, net.modules[name]) for net in networks if name in net.modules]
    try:
        for net, part in before:
            net.modules[name] = view = copy.copy(part)
            for own, value in held_by(part):
                copied = value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
                setattr(view, own, copied)
        yield
    finally:
        for net, part in before:
            net.modules[name] = part


def _at_base(layer: Any) -> Any:
    """Return a copy of a layer without networks, which nothing else uses."""
    twin = copy.copy(layer)
    twin._parameters = {}
    for name, base in (
        ("weight", layer.network_weights_backup),
        ("bias", layer.network_bias_backup),
    ):
        value = None if base is None else base.detach().to(layer.weight.device, copy=True)
        setattr(twin, name, None if value is None else nn.Parameter(value, requires_grad=False))
    twin.network_current_names = ()
    twin.network_weights_backup = twin.network_bias_backup = None
    return twin


def _tensors(parts: Iterable[Any]) -> Iterable[Tensor]:
    """Yield the tensors of network modules."""
    for part in parts:
        for _, value in held_by(part):
            if isinstance(value, nn.Module):
                yield from value.parameters()
            elif value.is_floating_point():
                yield value


def held_by(part: Any) -> list[tuple[str, Tensor | nn.Module]]:
    """Return what a network module computes with, by attribute: all but the layer it changes."""
    return [
        (name, value)
        for name, value in vars(part).items()
        if isinstance(value, Tensor)
        or (isinstance(value, nn.Module) and value is not part.sd_module)
    ]
