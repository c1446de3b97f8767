"""Computes a step both ways, now and then: what no looking finds shows in the WebUI's own result.

A step is *witnessed* where something that could matter has changed since the last one, and now and
then by chance. The WebUI's own code computes it first, then ours. Where the two agree, our result
is used, as in every other step, so that witnessing changes no picture.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ...model.layers import LayerFn
from ...runtime.accelerated import Call
from ...runtime.attributes import Weakly
from ...runtime.trial import Trial
from .. import webui
from .comparison import Both, Outcome, Tally, both_ways, difference, noise
from .inspection import Inspector
from .layer_forwards import HostLayer, Recording, listen
from .lora.layers import Loras

MOST = 4
"""Steps of one image that are witnessed: what changes at every step must not double the time."""

IMAGE = "compiled code and the WebUI differ; the WebUI's own code makes this image"
LAYER = "compiled code and the WebUI differ there"
WHOLE = "compiled code and the WebUI differ, and no layer alone explains it"


class Witness:
    """Decides which steps of one network are witnessed, compares, and keeps what it has found.

    `distrusted` are the layers that differed, with the reason. They run the WebUI's way until what
    the Inspector sees, the scripts, the options or the compiled code changes, or the weights do.
    """

    _network = Weakly()

    def __init__(
        self,
        network: nn.Module,
        inspector: Inspector,
        tally: Tally,
        trial: Trial,
        around: object = None,
    ):
        self.distrusted: dict[str, str] = {}
        self.trial = trial  # of the UNet: control networks go the way that it goes
        self._network, self._inspector, self._tally = network, inspector, tally
        self._random = random.Random(os.urandom(16))  # the generators of pictures are left alone
        self._steps = self._chosen = self._in_image = 0
        self._around = around  # what the WebUI has switched on
        self._code: object = None
        self._seen: object = None
        self._met: set[object] = set()
        self._compared: set[object] = set()  # shapes that both ways have computed
        self._image = False  # the rest of this image goes the WebUI's way
        self._whole = False  # so does everything
        self._unexplained: tuple[float, float] | None = None  # a step differed: by, allowed
        self._differing: dict[str, tuple[float, float]] = {}  # layers: by, allowed
        self._problem: str | None = None

    def beside(self, network: nn.Module, inspector: Inspector) -> Witness:
        """Return a witness for a control network of this UNet."""
        return Witness(network, inspector, self._tally, self.trial, self._around)

    # -- when

    def begin_image(self, around: object) -> None:
        """Follow a new image. `around`: what the WebUI has switched on for it."""
        if around != self._around:  # comparing the same object costs nothing
            self._around = around
        self._in_image, self._image = 0, self._unexplained is not None
        self.trial.begin_image()

    def start_anew(self) -> None:
        """Trust everything again: the network has other weights."""
        self._seen = None

    def why_not(self, h: Tensor) -> str | None:
        """Return why a step that begins with `h` runs the WebUI's way as a whole, or None."""
        if self._whole:
            self._inspector.look()
            self._follow()
        return IMAGE if self._image else WHOLE if self._whole else self.trial.why_not(h.shape)

    def is_due(self, kinds: object, h: Tensor, side: Any, code: object) -> bool:
        """Return whether to witness the step that begins with `h` and `side`. Asked once a step.

        `kinds` are those of the LoRAs that are merged, `code` is what computes our way.
        """
        self._code = code
        self._follow()
        state = kinds, *(math.prod(shape).bit_length() for shape in _shapes(h, side))
        due = (state not in self._met and self._in_image < MOST) | self._by_chance()
        if due:
            self._met.add(state)
            self._in_image += 1
        return due

    def _follow(self) -> None:
        """Trust everything again where something around the network has changed."""
        now = self._inspector.version, self._around, self._code
        if now != self._seen:
            self._seen, self._met, self._whole = now, set(), False
            self.distrusted, self._differing, self._unexplained = {}, {}, None
            self._compared = set()

    def _by_chance(self) -> bool:
        """Return whether this step is the one that was drawn of `rate` steps."""
        rate = webui.option("accel_witness_steps")
        if rate <= 0:
            return False
        place = self._steps % rate
        if place == 0:
            self._chosen = self._random.randrange(rate)
        self._steps += 1
        return place == self._chosen

    # -- a whole step

    def step(
        self,
        call: Call,
        theirs: Callable[[Call], Tensor],
        ours: Callable[[Call, Mapping[str, LayerFn]], Tensor],
        hosts: Mapping[str, HostLayer],
    ) -> tuple[Tensor, bool]:
        """Compute a call both ways. Return the result to use, and whether it is ours.

        `hosts` are the layers that run unaccelerated, which `ours` is given. They run once: in our
        way they answer what they have answered in the WebUI's.
        """
        copied = call._replace(x=call.x.clone(), context=call.context.clone())
        with Recording(hosts) as recording:
            outcome = both_ways(
                functools.partial(theirs, call),
                functools.partial(ours, copied, recording.layers),
                call.x.device,
            )
        self._tally.witnessed += 1
        used, by, allowed = self._judge("step", outcome, recording.apart)
        if by > allowed:
            self._image, self._unexplained = True, (by, allowed)
        if used is outcome.ours and not hosts:
            self._keep_times(_shapes(call.x, call.context), outcome)
        return used, used is outcome.ours

    def _judge(
        self, what: str, outcome: Outcome, apart: float = 0.0
    ) -> tuple[Tensor, float, float]:
        """Return the result to use, by how much the two ways differ, and how much they may.

        They differ by `apart` at least.
        """
        self._tally.seconds += outcome.theirs_s
        if outcome.theirs is None or outcome.ours is None:
            self._give_up(outcome.problem)
            used = outcome.ours if outcome.theirs is None else outcome.theirs
            assert used is not None
            return used, 0.0, 0.0
        weights = next(self._network.parameters()).dtype
        by = max(apart, difference(outcome.ours, outcome.theirs))
        allowed = noise(what, outcome.theirs, weights)
        self._tally.worst_error = max(self._tally.worst_error, by)
        return (outcome.ours if by <= allowed else outcome.theirs), by, allowed

    def _keep_times(self, shapes: tuple[tuple[int, ...], ...], outcome: Outcome) -> None:
        """Keep how long both ways took. First runs of a shape pay for more than the step."""
        if shapes in self._compared:
            times = outcome.theirs_s, outcome.ours_s
            self._tally.times.append(Both(*times, self.trial.backend, shapes[0]))
            self.trial.add(shapes[0], outcome.ours_s, outcome.theirs_s)
        self._compared.add(shapes)

    # -- layer by layer

    @contextlib.contextmanager
    def examining(
        self, modules: Mapping[str, nn.Module], ours: Callable[..., Tensor]
    ) -> Iterator[None]:
        """Compare each layer while the WebUI computes a step, if one before has differed.

        `ours` computes a layer of `modules` our way, given its name and inputs.
        """
        if self._unexplained is None or not modules:
            yield
            return
        handles: list[Any] = []
        for name, module in modules.items():
            handles += listen(module, functools.partial(self._examine, name, ours))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._whole = not self._differing
        self._say()
        self._unexplained = None

    def _examine(
        self, name: str, ours: Callable[..., Tensor], given: list[Tensor], out: Tensor
    ) -> None:
        h, side = given[0], given[1] if len(given) > 1 else None
        self._judge_layer(name, both_ways(lambda: out, lambda: ours(name, h, side), out.device))

    def both(self, name: str, theirs: Callable[[], Tensor], ours: Callable[[], Tensor]) -> Tensor:
        """Compute a layer both ways, where somebody else leads from layer to layer."""
        outcome = both_ways(theirs, ours, next(self._network.parameters()).device)
        before = len(self._differing)
        out = self._judge_layer(name, outcome)
        if len(self._differing) > before:
            self._image = True
            self._say(aloud=before == 0)
        return out

    def _judge_layer(self, name: str, outcome: Outcome) -> Tensor:
        used, by, allowed = self._judge("layer", outcome)
        if by > allowed:
            self.distrusted[name] = LAYER
            self._differing[name] = max(self._differing.get(name, (0.0, 0.0)), (by, allowed))
        return used

    def layer_by_layer(self) -> Callable[..., Tensor]:
        """Count a step that is witnessed layer by layer; return what computes a layer both ways."""
        self._tally.witnessed += 1
        return self.both

    # -- merged weights

    def check_merges(self, loras: Loras) -> None:
        """Merge some layers by the Lora extension's own code too; where ours differ, it merges."""
        began = time.perf_counter()
        try:
            if what := loras.check():
                self._report(
                    f"the Lora extension merges differently: {what}; its own code merges from now "
                    "on; please report this"
                )
        except Exception as error:  # noqa: BLE001  whatever a network's own code raises
            self._give_up(f"{type(error).__name__}: {error}")
        self._tally.seconds += time.perf_counter() - began

    # -- what is said

    def _say(self, aloud: bool = True) -> None:
        """Say what differs, and how far: in the status, and `aloud` in the console."""
        if self._differing:
            name = max(self._differing, key=lambda each: self._differing[each])
            by, allowed = self._differing[name]
            count = len(self._differing)
            where = name if count == 1 else f"{count} layers, most in {name}"
        else:
            assert self._unexplained is not None
            (by, allowed), where = self._unexplained, "the UNet as a whole"
        self._report(
            f"compiled code and the WebUI differ in {where}, by {by:.1e} where {allowed:.1e} is "
            "rounding; the WebUI's own code computes that from now on; please report this",
            aloud,
        )

    def _give_up(self, problem: str | None) -> None:
        if problem != self._problem:
            self._problem = problem
            webui.say(f"a step could not be compared with the WebUI's: {problem}")

    def _report(self, text: str, aloud: bool = True) -> None:
        self._tally.said = text
        if aloud:
            webui.say(text)


def _shapes(h: Tensor, side: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(t.shape) for t in (h, side) if isinstance(t, Tensor))
