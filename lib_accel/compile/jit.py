"""`torch.compile` in this process, unit by unit: for torch versions without packaging, or where no artifact can be kept.

A thread compiles every unit on example inputs while the caller runs without. Units take weights as inputs, so they are kept for
the life of the process, for every model and engine; for the next start there is only what Inductor's own cache holds.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from weakref import WeakSet

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ..config import Config
from ..errors import ArtifactRejected, CompileFailed
from ..model import architecture as arch
from ..store.store import ArtifactStore
from .jobs import Code, Job
from .target import Target
from .toolchain import missing_tools
from .units import UnitFn, UnitModule, describe
from .verify import check_unit, example_inputs

TRACED = (2, 12, 10, 77)
"""(B, H, W, L), all different, and from any width: a trace takes equal sizes for one."""


class Jit:
    name = "jit"

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        machine = target.machine
        if not config.compile:
            return "compiling is switched off"
        if not machine.compile:
            python = f"Python {sys.version_info.major}.{sys.version_info.minor} ({sys.platform})"
            return f"torch.compile does not work with torch {machine.torch} on {python}"
        if missing := missing_tools(machine, cpp=machine.device_type == "cpu"):
            return "; ".join(missing[0])
        if machine.device_type not in ("cpu", "cuda", "xpu"):
            return f"torch.compile is not tried on {machine.device_type}"
        return None

    def __init__(self) -> None:
        self._jobs: WeakSet[JitJob] = WeakSet()

    def make(self, target: Target, store: ArtifactStore) -> Code | Job:
        code = _at_hand(target)
        if len(code) == len(target.units):
            return code
        job = JitJob(target)
        self._jobs.add(job)
        return job.start()

    def kept_bytes(self, target: Target, store: ArtifactStore) -> int | None:
        return None

    def cancel(self) -> None:
        for job in list(self._jobs):
            job.cancel()


_made: dict[tuple[arch.Layer, torch.dtype, torch.device], UnitFn] = {}
"""What has been compiled and found right in this process."""


def _at_hand(target: Target) -> dict[arch.Layer, UnitFn]:
    made = {layer: _made.get((layer, target.dtype, target.device)) for layer in target.units}
    return {layer: fn for layer, fn in made.items() if fn is not None}


_turn = threading.Lock()
_turn_of: int | None = None
"""The thread that compiles. torch traces with one flag for the whole process: others have to wait, and cannot call compiled functions."""


class JitJob(Job):
    def __init__(self, target: Target):
        super().__init__("accel-jit", target)

    def work(self) -> Code:
        dtype, device = self.target.dtype, self.target.device
        for i, layer in enumerate(self.target.units):
            self.report(f"compiling {describe(layer)}", i / len(self.target.units))
            try:
                with _compiling():
                    if (layer, dtype, device) in _made:
                        continue
                    fn = jit_unit(layer, dtype, device)
                    verdict = check_unit(layer, fn, dtype, device, alone=False)
            except RuntimeError as e:  # torch's compiler errors all derive from it
                what = " ".join(
                    str(e).strip().partition("\n\n")[0].split()
                )  # the rest is advice on torch's own logs
                raise CompileFailed(
                    f"{describe(layer)} does not compile: {type(e).__name__}: {what}"
                ) from e
            if not verdict.passed:
                raise ArtifactRejected(
                    f"the compiled {describe(layer)} is inaccurate: {verdict}; it was discarded"
                )
            _made[layer, dtype, device] = fn
            self.compiled += 1
        return _at_hand(self.target)


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    global _turn_of
    with _turn:
        _turn_of = threading.get_ident()
        try:
            yield
        finally:
            _turn_of = None


def _others_compile() -> bool:
    return _turn_of not in (None, threading.get_ident())


def jit_unit(layer: arch.Layer, dtype: torch.dtype, device: torch.device) -> UnitFn:
    """A function compiled for activations of any size; sizes of 1 are compiled for once more each, when they are met.

    Traced to torch's own operators first: torch 2.1's compiler does not know modules whose weights are inputs.
    """
    module = UnitModule(layer)
    activations, weights = example_inputs(layer, TRACED, dtype, device)
    count = len(activations)
    with torch.no_grad():
        graph = make_fx(
            lambda *t: module(list(t[:count]), list(t[count:])), tracing_mode="symbolic"
        )(*activations, *weights)
    compiled = torch.compile(graph, dynamic=True, fullgraph=True)

    def call(inputs: list[torch.Tensor]) -> torch.Tensor:
        inputs = [
            t.detach() for t in inputs
        ]  # whether a weight wants a gradient would be one more reason to compile again
        for weight in inputs[count:]:
            torch._dynamo.mark_static(weight)
        with torch.no_grad():
            refused = _others_compile()
            try:
                return compiled(*inputs)
            except RuntimeError:  # torch's answer while another thread traces
                if not (refused or _others_compile()):
                    raise
                return graph(*inputs)

    call(
        [*activations, *weights]
    )  # first: what is compiled for a square, say, would be compiled again for the general case
    return call
