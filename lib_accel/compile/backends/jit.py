"""The `jit` backend: `torch.compile` in this process, unit by unit.

It serves torch versions that cannot make packages, and machines that can keep no artifact. A thread
compiles every unit while the caller goes on without. Units take weights as inputs, so each serves
every model of the session; across starts of the process, only Inductor's own cache remains. It lies
in a private folder: torch's own choice is a folder of a known name in the shared temporary one, and
native code is loaded from there, whoever has made it.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ...config import Config, own_jit_folder
from ...errors import AccelError, ArtifactRejected, CompileFailed
from ...model import specs
from ...store.files import expanded, make_folder
from ...store.privacy import closed_to_others, require_private_root
from ...store.private_folder import private_folder
from ...store.store import ArtifactStore
from ..accuracy import check_unit, example_inputs
from ..jobs import CompiledUnits, Job, Parts, stop
from ..target import Target
from ..toolchain import cannot_run, missing_tools, needs_quotes
from ..units import UnitFn, UnitModule, describe, trace_size
from .isolated_python import isolating_variables, naming_variables
from .times import Times

TRACING = threading.Lock()
"""Held while a unit is traced. torch keeps one tracing flag for the whole process: meanwhile, every
other thread that traces, or calls a compiled function, gets a RuntimeError. So neither a session
nor a backend can own this lock; it holds no other state."""


def exporting() -> bool:
    """Return whether what is computed now is recorded, as a trace or by torch.compile."""
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return True
    compiling = getattr(torch.compiler, "is_compiling", None)  # torch 2.1 has none
    # one flag for all threads: a job here, even a cancelled one, sets it as well
    return compiling is not None and compiling() and not TRACING.locked()


class _PrivateFiles:
    """While it is entered, by however many threads, torch's compiler keeps its files private.

    torch takes the places from the environment alone, which all threads share.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                cache = cache_folder()
                ours = {
                    "TORCHINDUCTOR_CACHE_DIR": str(cache),
                    "TRITON_CACHE_DIR": str(cache / "triton"),
                    **isolating_variables(),
                    **naming_variables(),
                }
                self._before = {name: os.environ.get(name) for name in ours}
                os.environ.update(ours)
                _forget_folder()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for name, value in self._before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
                _forget_folder()


PRIVATE_FILES = _PrivateFiles()
"""The one of this process, as there is one environment."""


def cache_folder() -> Path:
    """Return a private folder for the files of torch's compiler.

    It is kept in the user's profile, so that compiling is fast after the next start. Where that is
    impossible it ends with this process. Raises what `private_folder` does.
    """
    return _lasting_folder() or private_folder() / "jit"


@functools.cache
def _lasting_folder() -> Path | None:
    try:
        folder = expanded(own_jit_folder())
        make_folder(folder)
        require_private_root(folder)
        folder.chmod(0o700)  # whatever the umask is, torch's files in it are private
        if closed_to_others(folder) and os.access(folder, os.W_OK) and not needs_quotes(folder):
            return folder
    except (OSError, AccelError):  # no home, or one that others can change
        pass
    return None


def _forget_folder() -> None:
    """Let torch before 2.4 look again where its folder is."""
    codecache = sys.modules.get("torch._inductor.codecache")
    forget = getattr(getattr(codecache, "cache_dir", None), "cache_clear", None)
    if forget:
        forget()


def _inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    """Compile with Inductor. torch calls this, also later, when it meets another kind of size."""
    with PRIVATE_FILES:
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(graph, inputs, config_patches=private_options())


def private_options() -> dict[str, Any]:
    """Return Inductor's options for what it keeps in no folder that `PRIVATE_FILES` names."""
    from torch._inductor import config

    name = "cpp_cache_precompile_headers"  # torch 2.7 and later
    return {name: False} if hasattr(config, name) else {}


_Made = dict[tuple[specs.Spec, torch.dtype, torch.device], UnitFn]


class Jit:
    """Compiles in this process and keeps the units as long as it lives."""

    name = "jit"
    channels_last = True
    optional = False
    cuda_only = False
    quick = False

    def __init__(self) -> None:
        self._made: _Made = {}
        self._jobs: WeakSet[JitJob] = WeakSet()

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        """Refuse where compiling is switched off, the device is unknown, or a tool is missing."""
        machine = target.machine
        if target.units and len(_made_for(target, self._made)) == len(target.units):
            return None
        if not config.compile:
            return "compiling is switched off"
        if not machine.compile:
            python = f"Python {sys.version_info.major}.{sys.version_info.minor} ({sys.platform})"
            return f"torch.compile does not work with torch {machine.torch} on {python}"
        if why := cannot_run(machine, target.dtype):
            return why
        if missing := missing_tools(machine, cpp=machine.device_type == "cpu"):
            return "; ".join(missing[0])
        if machine.device_type not in ("cpu", "cuda", "xpu"):
            return f"torch.compile is not tried on {machine.device_type}"
        return None

    def make(self, target: Target, store: ArtifactStore) -> CompiledUnits | Job:
        """Return the units of `target` where all are compiled, else a job that compiles them."""
        units = _made_for(target, self._made)
        if len(units) == len(target.units):
            return units
        job = JitJob(target, self._made)
        self._jobs.add(job)
        return job.start()

    def kept_bytes(self, target: Target, store: ArtifactStore) -> int | None:
        """Return None: nothing is stored."""
        return None

    def keys(self, target: Target) -> tuple[()]:
        """Return none: nothing is kept in the store."""
        return ()

    def cancel(self) -> list[Target]:
        """Stop every job. Return what they were for."""
        return stop(self._jobs)


def _made_for(target: Target, made: _Made) -> CompiledUnits:
    keys = {unit: (unit, target.dtype, target.device) for unit in target.units}
    return {unit: made[key] for unit, key in keys.items() if key in made}


class JitJob(Job):
    """Compiles the units of a target, one after the other, and adds each to `made`."""

    def __init__(self, target: Target, made: _Made):
        super().__init__("accel-jit", target)
        self._made = made

    def work(self) -> CompiledUnits:
        """Compile what is missing. Raises CompileFailed, ArtifactRejected for inaccurate code."""
        target, times = self.target, Times("jit", self.target.device.type)
        made = _made_for(target, self._made)
        parts = Parts({unit: times.expected(unit) for unit in target.units if unit not in made})
        self.parts = parts
        for unit in parts.longest_first:
            self.report(f"compiling {describe(unit)}")
            with TRACING:
                key, first = (unit, target.dtype, target.device), not self._made
                parts.begin(unit, times.start_s if first else 0.0)
                began, seconds = time.monotonic(), None
                if key not in self._made:  # another job may have compiled it in the meantime
                    self._made[key] = self._compile(unit)
                    self.compiled += 1
                    seconds = time.monotonic() - began
                    times.add(unit, seconds, first)
                parts.finish(unit, seconds)
        return _made_for(target, self._made)

    def _compile(self, unit: specs.Spec) -> UnitFn:
        dtype, device = self.target.dtype, self.target.device
        try:
            made = JitUnit(unit, dtype, device)
            verdict = check_unit(unit, made.compute, dtype, device, alone=False)
        except RuntimeError as error:  # torch's compiler errors all derive from it
            # after the first paragraph comes advice on torch's own logs
            what = " ".join(str(error).strip().partition("\n\n")[0].split())
            failure = f"{describe(unit)} does not compile: {type(error).__name__}: {what}"
            raise CompileFailed(failure) from error
        if not verdict.passed:
            failure = f"the compiled {describe(unit)} is inaccurate: {verdict}; it was discarded"
            raise ArtifactRejected(failure)
        return made


class JitUnit:
    """A unit compiled by `torch.compile` for activations of any size: a `UnitFn`.

    Sizes of 1 are compiled for once more, each when it is first met.
    """

    def __init__(self, unit: specs.Spec, dtype: torch.dtype, device: torch.device):
        """Compile the unit. Raises RuntimeError where torch cannot."""
        module = UnitModule(unit, fused=device.type == "cuda")
        activations, weights = example_inputs(unit, trace_size(unit), dtype, device)
        self._count = count = len(activations)
        with PRIVATE_FILES, torch.no_grad():  # already importing the compiler makes its folder
            # Traced to torch's own operators first: torch 2.1's compiler does not know modules
            # whose weights are inputs.
            self._graph = make_fx(
                lambda *t: module(list(t[:count]), list(t[count:])), tracing_mode="symbolic"
            )(*activations, *weights)
            self._compiled = torch.compile(
                self._graph, backend=_inductor, dynamic=True, fullgraph=True
            )
            # Called with it first: had torch met a square, it would compile again for the rest.
            self.compute([*activations, *weights])

    def compute(self, inputs: list[Tensor]) -> Tensor:
        """Run the compiled code. Raises RuntimeError while another thread traces."""
        with torch.no_grad():
            return self._compiled(*self._prepared(inputs))

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        """Run the compiled code, or the traced operators one by one while another thread traces."""
        tracing = TRACING.locked()
        try:
            return self.compute(inputs)
        except RuntimeError:
            if not (tracing or TRACING.locked()):
                raise
        with torch.no_grad():
            return self._graph(*self._prepared(inputs))

    def _prepared(self, inputs: list[Tensor]) -> list[Tensor]:
        """Keep torch from compiling again: for weights with a gradient, or with another size."""
        inputs = [t.detach() for t in inputs]
        for weight in inputs[self._count :]:
            torch._dynamo.mark_static(weight)
        return inputs
