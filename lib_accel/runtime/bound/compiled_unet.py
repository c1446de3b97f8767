"""A UNet of compiled layers, and what is prepared for them: computed once for all of them.

That is the time embedding with its projections, and the keys and values of the prompt. Each
transformer projects the prompt, which stays the same for all steps of an image: 32 products in SD1,
140 in SDXL. The WebUI makes a new tensor of it at every step, at an address where another prompt
may have been, so the values are compared, on the device. That reads a hundredth of the weights that
it saves reading, and waits for the device once, as samplers do at each step.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ...compile.jobs import CompiledUnits, WholeFn
from ...compile.machine import has_room
from ...compile.units import UnitFn
from ...config import MIB
from ...model.parts.embedding import timestep_frequencies
from ...model.specs import ResBlock
from ...model.unet import UNet
from .binding import CompiledLayer, UnitWeights
from .compiled_whole import CompiledWhole

MOST_PROMPTS = 4
"""Prompts that are kept: the WebUI computes prompt and negative prompt apart where they differ in
length, and a few more where prompts are edited or combined."""

MOST_BYTES = 256 * MIB
"""Memory that all keys and values take together. Those of SDXL take 49 MiB at batch 2."""

MISSES, PAUSE = 8, 64
"""After that many prompts in a row that were new, none is looked for in that many calls."""

SAMPLED = 4
"""Weights that are compared, besides the prompt. More would take longer than they save."""

_version = operator.attrgetter("_version")


@dataclass
class _Prompt:
    shape: torch.Size  # of the context: [B, L, D]
    values: Tensor  # those of the context, and some of the weights
    flat: Tensor  # the keys and values of all transformers, one after the other
    number: int  # that of the call that brought it
    used: int = 0  # that of the last call

    @property
    def bytes(self) -> int:
        return self.values.nbytes + self.flat.nbytes


class KeptPrompts:
    """Keeps the keys and values of the last prompts for the transformers of one UNet.

    They are forgotten when a weight that makes them is changed in place, which torch counts. What
    is written through `.data` it does not count: so a row of some weights is compared as well,
    which shows what writes all of them. Whoever writes others in that way calls `forget`.
    """

    def __init__(self) -> None:
        self._prompts: list[_Prompt] = []
        self.bind({})

    def bind(self, layers: Mapping[str, CompiledLayer]) -> None:
        """Begin again, for the transformers among these layers."""
        self._layers = {name: each for name, each in layers.items() if each.takes_context}
        self._weights = [w for each in self._layers.values() for w in each.preparing]
        if any(w.is_inference() for w in self._weights):  # torch does not count their changes
            self._layers, self._weights = {}, []
        self._sampled = self._weights[:: max(1, len(self._weights) // SAMPLED)]
        self._widths = [w.shape[0] for w in self._weights]
        self._versions: list[int] = []
        self._calls = self._misses = self._last = 0
        self.forget()

    def forget(self) -> bool:
        """Let all prompts go; return whether there were any."""
        there = bool(self._prompts)
        self._prompts.clear()
        self._after: dict[int, int] = {}  # which prompt came after which one, by number
        return there

    @property
    def bytes(self) -> int:
        """Memory that is held."""
        return sum(prompt.bytes for prompt in self._prompts)

    def find(self, context: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return the keys and values of `context: [B, L, D]` in `dtype`, flat: see `split`.

        They are computed where this prompt is new. Return None where they are not kept.
        """
        if not self._layers or context.ndim != 3 or not context.numel() or self._pauses():
            return None
        context = context.to(dtype)
        versions = list(map(_version, self._weights))
        if versions != self._versions:
            self.forget()
            self._versions = versions
        self._calls += 1
        values = torch.cat([context.flatten(), *(w[0] for w in self._sampled)])
        prompt = self._equal(context.shape, values)
        if prompt is None:
            self._misses += 1
            prompt = self._add(context, values)
        else:
            self._misses = 0
        if prompt is None:
            return None
        prompt.used = self._calls
        self._after[self._last] = prompt.number
        self._last = prompt.number
        return prompt.flat

    def split(self, flat: Tensor, context: Tensor) -> dict[str, list[Tensor]]:
        """Return the keys and values of each transformer by its name, as views: `[B, L, C]`."""
        batch, length = context.shape[:2]
        parts = iter(flat.split([batch * length * width for width in self._widths]))
        return {
            name: [next(parts).view(batch, length, -1) for _ in each.preparing]
            for name, each in self._layers.items()
        }

    def _pauses(self) -> bool:
        """Whether the last prompts were all new, so that comparing is given up for a while."""
        if self._misses < MISSES:
            return False
        self.forget()
        self._misses = (self._misses + 1) % (MISSES + PAUSE)
        return True

    def _equal(self, shape: torch.Size, values: Tensor) -> _Prompt | None:
        """Return the prompt with these values. Each comparison waits for the device.

        It begins with the one that came after the last one before: prompt and negative prompt may
        take turns.
        """
        expected = self._after.get(self._last)
        alike = [p for p in self._prompts if p.shape == shape]
        alike.sort(key=lambda p: (p.number != expected, -p.used))
        return next((p for p in alike if torch.equal(p.values, values)), None)

    def _add(self, context: Tensor, values: Tensor) -> _Prompt | None:
        """Compute the keys and values of a new prompt; None where there is no room for them."""
        count = context.shape[:2].numel() * sum(self._widths)
        needed = count * context.element_size() + values.nbytes
        if needed > MOST_BYTES or not has_room(context.device, needed):
            return None
        while self._prompts and (
            len(self._prompts) == MOST_PROMPTS or self.bytes + needed > MOST_BYTES
        ):
            oldest = min(self._prompts, key=lambda p: p.used)
            self._prompts.remove(oldest)
            self._after.pop(oldest.number, None)
        prompt = _Prompt(context.shape, values, context.new_empty(count), self._calls)
        for name, views in self.split(prompt.flat, context).items():
            computed = self._layers[name].module.prepare(context, context)  # type: ignore[operator]
            for view, each in zip(views, computed, strict=True):
                view.copy_(each)
        self._prompts.append(prompt)
        return prompt


class CompiledEmbedding:
    """The time embedding of a UNet and all its projections, computed by their unit at once."""

    def __init__(self, unit: UnitFn, unet: UNet, dtype: torch.dtype):
        spec = unet.architecture.embedding
        self._unit, self._dtype, self._adm_channels = unit, dtype, spec.adm_channels
        self._weights = UnitWeights(unet.embedding_weights(), dtype)
        self._frequencies = timestep_frequencies(spec.model_channels, self._weights.device)
        self._widths = (spec.emb_channels, *spec.widths)
        self._blocks = [n for n, s in unet.architecture.layers() if isinstance(s, ResBlock)]

    def __call__(
        self, timesteps: Tensor, y: Tensor | None
    ) -> tuple[Tensor, dict[str, list[Tensor]]] | None:
        """Return `emb: [B, emb_channels]`, and its projection `[B, C']` by residual block.

        `timesteps: [B]`, `y: [B, adm_channels]`. Return None where the unit was not made for them.
        """
        given = [timesteps.float().contiguous()]
        if self._adm_channels is not None:
            if y is None or y.shape != (*timesteps.shape, self._adm_channels):
                return None
            given.append(y.to(self._dtype).contiguous())
        device = self._weights.device
        if timesteps.ndim != 1 or any(t.device != device or not t.numel() for t in given):
            return None
        given += [self._frequencies, *self._weights()]
        flat, batch = self._unit(given), timesteps.shape[0]
        parts = flat.split([batch * width for width in self._widths])
        emb, *projected = (part.view(batch, -1) for part in parts)
        return emb, {name: [each] for name, each in zip(self._blocks, projected, strict=True)}


class CompiledUNet:
    """A clean UNet with compiled layers in place of its own, and what is prepared for these.

    Where the whole is compiled too, it computes every call that it can. `left` says why the last
    one was left to the layers.
    """

    def __init__(self, unet: UNet):
        self.prompts = KeptPrompts()
        self._unet = unet
        self._whole: CompiledWhole | None = None
        self.release()

    def bind(
        self, layers: Mapping[str, CompiledLayer], units: CompiledUnits, dtype: torch.dtype
    ) -> None:
        """Begin again with these layers, by name, which have been made of `units` for `dtype`."""
        self._layers, self._dtype = layers, dtype
        self.left: str | None = None
        self._embedding: CompiledEmbedding | None = None
        self.give_up()
        if layers and (unit := units.get(self._unet.architecture.embedding)):
            self._embedding = CompiledEmbedding(unit, self._unet, dtype)
        self._whole = None
        if layers and not self._unet.extra_biases:
            whole = cast("WholeFn | None", units.get(self._unet.architecture))
            self._whole = CompiledWhole(whole, self._unet, dtype) if whole else None
        self.prompts.bind({} if self._whole else layers)

    def release(self) -> None:
        """Hold no weight of anybody."""
        self.bind({}, {}, torch.float32)

    def begin_image(self) -> None:
        """Forget prompts, and have weights compared that code keeps a copy of."""
        self.prompts.forget()
        if self._whole:
            self._whole.fn.begin_image()

    @property
    def kept_bytes(self) -> int:
        """Video memory that code for the whole keeps to be faster."""
        return self._whole.fn.kept_bytes if self._whole else 0

    def give_up(self) -> bool:
        """Let that memory go; return whether there was any."""
        return self._whole is not None and self._whole.fn.give_up()

    def settled(self, *inputs: Tensor | None) -> bool:
        """Return whether a call is computed as the next ones of its sizes will be."""
        given = [tensor for tensor in inputs if tensor is not None]
        return self._whole is None or self.left is not None or self._whole.fn.settled(given)

    def keys_and_values(self, context: Tensor) -> Tensor | None:
        """Return those of the prompt, computed now or kept; None where they are not kept."""
        return self.prompts.find(context, self._dtype)

    def __call__(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None,
        kept: Tensor | None,
        *residuals: Tensor | None,
    ) -> Tensor:
        """Compute a call as `UNet.forward` does; `kept` is what `keys_and_values` returns."""
        if self._whole:
            out: Tensor | str = "this size needs the WebUI's own way to resize"
            if residuals:
                out = "ControlNet adds to what layers return"
            elif not self._unet.resizes_first or self._unet.fits(x):
                out = self._whole(x, timesteps, context, y)
            if isinstance(out, Tensor):
                self.left = None
                return out
            self.left = out
        embedded = self._embedding(timesteps, y) if self._embedding else None
        emb, prepared = embedded or (self._unet.embed(timesteps, y), {})
        if kept is not None:
            prepared |= self.prompts.split(kept, context)
        layers = self._layers
        given = {n: layers[n].given(*each) for n, each in prepared.items() if n in layers}
        layers = {**self._unet.layers, **layers, **given}
        return self._unet.run(x, emb, context, layers, residuals)
