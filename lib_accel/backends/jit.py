"""`torch.compile` in this process, unit by unit: for torch versions without packaging, or where no artifact can be kept.

A thread compiles every unit on example inputs while the caller runs without; nothing is kept for the next start but what
Inductor's own cache holds.
"""

from __future__ import annotations

import sys
import types

import torch

from .. import architecture as arch
from ..compiler.verify import check_unit
from ..config import Config
from ..environment import Target
from ..errors import ArtifactRejected, CompileFailed
from ..jobs import Code, Job
from ..store import ArtifactStore
from ..units import UnitFn, UnitModule, describe, unit_key


class Jit:
    name = "jit"

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        machine = target.machine
        if not config.compile:
            return "compiling is switched off"
        if not machine.compile:
            return f"torch.compile does not work with torch {machine.torch} on Python {sys.version_info.major}.{sys.version_info.minor}"
        if machine.device_type == "cuda" and machine.triton is None:
            return "Triton is not installed, which torch.compile needs on a GPU; pip install triton (Windows: triton-windows)"
        if machine.device_type == "cpu" and machine.cxx is None:
            return "no C++ compiler was found, which torch.compile needs on a CPU; install g++ or the Visual Studio Build Tools"
        if machine.device_type not in ("cpu", "cuda", "xpu"):
            return f"torch.compile is not tried on {machine.device_type}"
        return None

    def ready(self, target: Target, store: ArtifactStore) -> Code | None:
        return None

    def start(self, target: Target, store: ArtifactStore) -> Job:
        return JitJob(target).start()


class JitJob(Job):
    def __init__(self, target: Target):
        super().__init__("accel-jit", target)

    def work(self) -> Code:
        code: dict[arch.Layer, UnitFn] = {}
        for i, layer in enumerate(self.target.units):
            self.report(f"compiling {describe(layer)}", i / len(self.target.units))
            try:
                code[layer] = jit_unit(layer)
                verdict = check_unit(layer, code[layer], self.target.dtype, self.target.device)
            except RuntimeError as e:  # torch's compiler errors all derive from it
                what = " ".join(str(e).strip().partition("\n\n")[0].split())  # the rest is advice on torch's own logs
                raise CompileFailed(f"{describe(layer)} does not compile: {type(e).__name__}: {what}") from e
            if not verdict.passed:
                raise ArtifactRejected(f"the compiled {describe(layer)} is inaccurate: {verdict}; it was discarded")
        return code


def jit_unit(layer: arch.Layer) -> UnitFn:
    """One compiled function with dynamic sizes. Two traces at most: the general one, and sizes of 1."""
    module = UnitModule(layer)
    activations = 2 if module.side else 1

    def run(inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
        return module(inputs, weights)

    # torch limits the compilations of one code object (8 by default), and every unit would share this one: each gets its own
    own = types.FunctionType(run.__code__.replace(co_name=unit_key(layer)), globals(), closure=run.__closure__)
    compiled = torch.compile(own, dynamic=True, fullgraph=True)

    def call(inputs: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return compiled(inputs[:activations], [w.detach() for w in inputs[activations:]])

    return call
