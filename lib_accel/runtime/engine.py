"""One UNet, accelerated: binds compiled code to somebody else's weights and keeps doing so while they change.

`prepare` starts, `take_up` installs what a background job has finished (between images), a call computes. Nothing here
waits for a compiler unless the configuration says so, and nothing here makes an image fail that would have been made
without it: code that fails is dropped with a reason and the clean UNet goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..compile.jobs import Code, Job, Progress
from ..compile.machine import Machine, probe
from ..compile.session import Choice, Session
from ..compile.target import Target
from ..compile.units import UnitFn, input_widths, side_input, units_of, widest
from ..config import Config
from ..errors import AccelError, ArtifactRejected, BadWeights, CompileFailed, NoRoom, StoreError
from ..model import cpu_operators
from ..model.architecture import Architecture, Layer
from ..model.precision import without_autocast
from ..model.unet import LayerFn, UNet
from ..store.store import ArtifactStore
from .graphs import GraphCache
from .weights import Weights

T = TypeVar("T")

INT32_LIMIT = 2**31
"""Compiled GPU code counts elements in 32 bits (Inductor does, for what it was traced at); torch's own kernels know when not to."""


@dataclass
class Counters:
    compiles: int = 0  # units compiled by this engine
    binds: int = 0  # times weights were found elsewhere and taken up
    accelerated_calls: int = 0  # UNet calls that ran compiled code


@dataclass(frozen=True)
class Status:
    state: str  # "eager" | "compiling" | "ready" | "fallback"
    reason: str | None  # why no better backend serves, or what failed
    backend: str
    architecture: str
    dtype: str
    device: str
    progress: Progress | None
    artifact: dict[str, Any] | None  # {"key", "bytes"}
    counters: Counters


class CompiledLayer:
    """A layer of the clean UNet, computed by compiled code from the layer's own parameters.

    Compiled code checks nothing and would read past the end of tensors it was not made for: those go through the layer
    itself, which broadcasts them (one `emb` for a whole batch), computes them (SD1 at 4096x4096, two images) or says what
    is wrong with them.
    """

    def __init__(self, fn: UnitFn, module: nn.Module, spec: Layer, dtype: torch.dtype):
        self._fn, self.module, self._side, self.dtype = fn, module, side_input(spec), dtype
        self._parameters: list[Tensor] = list(module.parameters())
        self._widen = any(
            p.dtype != dtype for p in self._parameters
        )  # asked once: 686 times `to` take 0.7 ms to do nothing
        self._widths, self._widest = input_widths(spec), widest(spec)

    def __call__(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        inputs = [h] if self._side is None else [h, emb if self._side == "emb" else context]
        if not self._fits(inputs):
            return self.module(h, emb, context)
        inputs = [
            h.contiguous(memory_format=torch.channels_last),
            *(side.contiguous() for side in inputs[1:]),
        ]
        return self._fn(
            inputs
            + ([p.to(self.dtype) for p in self._parameters] if self._widen else self._parameters)
        )

    @property
    def takes_emb(self) -> bool:
        """Whether its side input is the time embedding, not the context."""
        return self._side == "emb"

    def _fits(self, inputs: list[Tensor]) -> bool:
        h, weight = inputs[0], self._parameters[0]
        if (
            h.ndim != 4
            or h.shape[1] != self._widths[0]
            or inputs[-1].shape[-1] != (self._widths[1] if self._side else h.shape[-1])
        ):
            return False
        if h.device.type != "cpu" and h.numel() // h.shape[1] * self._widest >= INT32_LIMIT:
            return False
        return all(
            t.shape[0] == h.shape[0]
            and t.numel()
            and t.dtype == self.dtype
            and t.device == weight.device
            for t in inputs
        )


def out_of_memory_errors(device: torch.device) -> int:
    """How many there were on this device in this process."""
    return torch.cuda.memory_stats(device).get("num_ooms", 0) if device.type == "cuda" else 0


@dataclass(eq=False)
class Engine:
    """Accelerates `donor`, a UNet with the LDM parameter names, whose Parameters it shares.

    Raises UnsupportedArchitecture or BadWeights from the constructor when the donor is not one it can serve.
    """

    donor: nn.Module
    config: Config = field(default_factory=Config)
    counters: Counters = field(default_factory=Counters)
    session: Session = field(default_factory=Session)
    machine: Callable[[torch.device], Machine] = probe
    device: torch.device | None = (
        None  # where images are computed; by default where the weights are now
    )

    def __post_init__(self) -> None:
        self.architecture = Architecture.from_module(self.donor)
        self.units = units_of(self.architecture)
        self.unet = UNet(self.architecture)
        self.weights = Weights(self.donor)
        self.device = self.device or next(self.donor.parameters()).device
        self.store = ArtifactStore(
            self.config.store, self.config.store_bytes, self.config.store_readonly
        )
        self.job: Job | None = None
        self._code: Code = {}
        self._code_dtype: torch.dtype | None = None  # which weights the code is for
        self._artifact: dict[str, Any] | None = None  # of the store, where the code came from one
        self._choice: Choice | None = None
        self._failed: dict[
            str, str
        ] = {}  # backends that failed while loading or computing, with the reason
        self._discarded: str | None = None  # why the artifact that was at hand is not used
        self._graphs: GraphCache | None = None
        self._ooms = out_of_memory_errors(self.device)
        self._bind()

    # -- getting ready

    @property
    def target(self) -> Target:
        assert self.device is not None
        return Target(self.units, self.unet.dtype, self.device, self.machine(self.device))

    def prepare(self) -> None:
        """Take code that is at hand, else start making it. Returns at once unless the configuration is blocking."""
        if self.weights.moved():
            self._bind()
        target = self.target
        if self.job is not None and self.job.target.key != target.key:
            self.job.cancel()
            self.job = None
        if self.job is not None:
            return  # under way already
        with contextlib.suppress(
            AccelError
        ):  # a store that cannot be used is the backend's to report
            if self._not_made and self.store.contains(
                target.key
            ):  # made elsewhere and imported since
                self._not_made.clear()
        while True:
            self._choice = self.session.choose(target, self.store, self.config, self._all_failed)
            try:
                if self._choice.backend is None:
                    return
                code = self._choice.backend.make(target, self.store)
                if isinstance(code, Job):
                    self.job = code
                    if self.config.blocking:
                        self.job.wait()
                        self.take_up()
                    return
            except (ArtifactRejected, StoreError) as e:
                self._reject(target, e)
                continue
            self._install(code)
            return

    def take_up(self) -> bool:
        """Install what the background job has made, if it has ended; call it between images. True when something changed."""
        if self.job is None or not self.job.done:
            return False
        try:
            self._follow()  # may find another dtype and prepare for that: what was made is in the store, for later
        except BadWeights:
            return False  # unloaded or half moved: the code waits, the next call says what is wrong
        if self.job is None or not self.job.done:
            return True
        job, self.job = self.job, None
        if job.cancelled:  # by another model that wanted the same
            self.prepare()
            return True
        self.counters.compiles += job.take_count()
        assert self._choice is not None
        try:
            self._install(job.result())
        except (CompileFailed, ArtifactRejected, StoreError) as e:
            passing = isinstance(e, (NoRoom, StoreError))
            (self._failed if passing else self._not_made)[self._backend_name] = str(e)
            self.prepare()
        return True

    def close(self, keep_compiling: bool = False) -> None:
        """Forget graphs and code, give the donor its memory layout back, and hold its weights no longer; a later call takes them up again.

        Compiling stops, unless what it makes will be wanted by another model: then that one finds it under way or made.
        """
        if self.job is not None and not keep_compiling:
            self.job.cancel()
        self.job = None
        self._code, self._compiled = {}, {}
        self._choice = None
        self.layers = dict(self.unet.layers)
        self._drop_graphs()
        self.weights.set_layout(compiled=False)
        self.weights.forget()
        self.unet.to("meta")

    def _reject(self, target: Target, error: AccelError) -> None:
        """A damaged artifact is removed once, so that a good one can be made; if that fails too, the backend is out."""
        assert self._choice is not None
        if (
            isinstance(error, ArtifactRejected)
            and self._discarded is None
            and not self.store.readonly
            and self.store.contains(target.key)
        ):
            try:
                self.store.discard(target.key, str(error))
                self._discarded = str(error)
                return
            except StoreError as e:
                error = e
        self._failed[self._backend_name] = str(error)

    @property
    def _backend_name(self) -> str:
        backend = self._choice.backend if self._choice else None
        return backend.name if backend else "none"

    @property
    def _not_made(self) -> dict[str, str]:
        return self.session.failures(self.target, self.config)

    @property
    def _all_failed(self) -> dict[str, str]:
        """Backends not to try, with the reason of each."""
        return {**self._not_made, **self._failed}

    def _install(self, code: Code) -> None:
        self._code, self._code_dtype = code, self.unet.dtype
        self._discarded = None if code else self._discarded
        entry = None
        with contextlib.suppress(
            StoreError
        ):  # only told of: code that was just made serves without the store too
            entry = self.store.entry(self.target.key) if code else None
        self._artifact = {"key": entry.key, "bytes": entry.bytes} if entry else None
        self._bind()

    # -- weights

    def _bind(self) -> None:
        """Share the donor's parameters as they are now. Weights parked elsewhere (medvram) get compiled code when they come back."""
        try:
            self.unet.adopt(self.weights.accept())
        except BadWeights:
            self.weights.forget()  # not taken up, so the next call has to ask again
            self._drop_graphs()
            raise
        self.unet.compute_dtype = None
        if self.device is not None and self.device.type == "cpu":
            self.unet.compute_dtype = cpu_operators.fastest_dtype(self.unet.dtype)
        self._dtype = self.unet.dtype
        if self._dtype != self._code_dtype:
            self._code = {}  # it must never meet these weights
        self._compiled: dict[str, CompiledLayer] = {}
        if self._code and next(self.unet.parameters()).device == self.device:
            self.weights.set_layout(compiled=True)
            for name, spec in self.architecture.layers():
                if spec in self._code and not any(
                    p.startswith(f"{name}.") for p in self.unet.grown
                ):
                    self._compiled[name] = CompiledLayer(
                        self._code[spec], self.unet.get_submodule(name), spec, self._dtype
                    )
            self.weights.accept()  # the layout may have moved some
        self.layers: dict[str, LayerFn] = {**self.unet.layers, **self._compiled}
        self._drop_graphs()
        self.counters.binds += 1

    def _follow(self) -> None:
        """Notice weights that have moved. Code for another dtype is dropped, and the right one asked for."""
        if not self.weights.moved():
            return
        before = self._dtype  # not the UNet's own: that has changed with the parameters it shares
        self._bind()
        if self._choice is not None and self._dtype != before:
            self.prepare()

    def _drop_graphs(self) -> None:
        """What was recorded read weights where they were. Why nothing is recorded, if so, stays."""
        if self._graphs is not None:
            self._graphs.clear()

    def release_graphs(self) -> bool:
        """Give back the video memory that CUDA graphs hold, if they hold any. They are recorded anew when they are next of use."""
        if self._graphs is None or not self.graph_bytes:
            return False
        self._graphs.clear()
        torch.cuda.empty_cache()
        return True

    @property
    def graph_bytes(self) -> int:
        """Video memory that CUDA graphs hold."""
        return self._graphs.bytes if self._graphs is not None else 0

    # -- computing

    def __call__(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        replaced: Mapping[str, LayerFn] | None = None,
    ) -> Tensor:
        """`x: [B, in_channels, H, W]`, `timesteps: [B]`, `context: [B, L, context_dim]`, `y: [B, adm]` -> `[B, out_channels, H, W]`.

        `replaced`: layers by name that somebody else has changed and that must run their way; the rest stays compiled.
        Raises BadWeights when the donor's weights cannot be used as they are.
        """
        self._follow()
        with torch.no_grad(), without_autocast(x.device):
            out = self._guarded(
                lambda layers: self._run(layers, replaced, x, timesteps, context, y),
                self.layers,
                self.unet.layers,
            )
        if self._code:
            self.counters.accelerated_calls += 1
        return out

    def compiled_layers(self) -> Mapping[str, CompiledLayer]:
        """Those that compiled code computes now, by name: for whoever drives the UNet itself. Ask at every pass; weights may move."""
        self._follow()
        return self._compiled

    def run_layer(self, layer: CompiledLayer, h: Tensor, side: Tensor | None = None) -> Tensor:
        """`h: [B, C, H, W]` through one of `compiled_layers`; `side` is its emb or its context. Any dtypes; h's comes back."""
        with torch.no_grad(), without_autocast(h.device):
            x, s = (t.to(layer.dtype) for t in (h, h if side is None else side))
            return self._guarded(lambda of: of(x, s, s), layer, layer.module).to(h.dtype)

    def _guarded(self, run: Callable[[T], Tensor], compiled: T, clean: T) -> Tensor:
        """`run` with what is compiled; if that fails and with what is clean it does not, compiled code is dropped."""
        try:
            return run(compiled)
        except RuntimeError as e:
            failure = e.with_traceback(None)  # its frames hold the activations of the whole call
        out_of_memory = (
            isinstance(failure, torch.cuda.OutOfMemoryError) or self._ran_out_of_memory()
        )
        if out_of_memory and self.release_graphs():
            return self._guarded(run, compiled, clean)
        if isinstance(failure, torch.cuda.OutOfMemoryError):
            try:
                raise failure  # the host has its own ways to make room, and would have run out too
            finally:
                del failure  # it refers to this frame
        out = run(clean)
        if self._code and not (
            out_of_memory or self._ran_out_of_memory()
        ):  # without code: dropped in this pass, or never there
            self._fail(failure)
        return out

    def _ran_out_of_memory(self) -> bool:
        """Since the last time. AOTInductor's code raises that as it raises everything: the type of the error is lost."""
        assert self.device is not None
        before, self._ooms = self._ooms, out_of_memory_errors(self.device)
        return self._ooms > before

    def _run(
        self, layers: Mapping[str, LayerFn], replaced: Mapping[str, LayerFn] | None, *inputs: Any
    ) -> Tensor:
        if replaced:  # unknown code: it may do what a graph cannot record
            return self.unet(*inputs, {**layers, **replaced})
        if inputs[0].device.type != "cuda" or not self.config.graphs or layers is not self.layers:
            return self.unet(*inputs, layers)
        if self._graphs is None:
            self._graphs = GraphCache(
                lambda *i: self.unet(*i, self.layers), self.config.graph_bytes
            )
        if self._code and self._backend_name == "aoti" and not self.target.machine.recordable:
            self._graphs.refuse(
                f"torch {torch.__version__} waits inside compiled code; that needs torch 2.7 or later"
            )
        return self._graphs(*inputs)

    def _fail(self, error: RuntimeError) -> None:
        """Compiled code failed at run time: leave it for good, say why, go on without."""
        assert self._choice is not None
        self._failed[self._backend_name] = (
            f"it failed while computing: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        )
        self._code = {}
        self._bind()
        self._choice = replace(self._choice, refused=tuple(self._all_failed.items()))

    # -- telling

    @property
    def code(self) -> Code:
        """What is compiled, by layer; empty while nothing is."""
        return self._code

    @property
    def complete(self) -> bool:
        """Whether code serves that the store still has: there is nothing to build."""
        return bool(self._code) and self.store.contains(self.target.key)

    @property
    def status(self) -> Status:
        target = self.target
        job = self.job  # once: images take it away while a page asks
        compiling = job is not None and not job.done
        backend = self._backend_name
        if compiling:
            state = "compiling"
        elif self._code:
            state = "ready"  # also where a better backend failed: the reason says so
        else:
            state = "fallback" if self._all_failed else "eager"
        return Status(
            state=state,
            reason="; ".join(
                filter(
                    None,
                    (
                        self._discarded,
                        self._choice and self._choice.reason,
                        self._graphs and self._graphs.refused,
                    ),
                )
            )
            or None,
            backend=backend if self._code or compiling else "eager",
            architecture=self.architecture.name,
            dtype=str(target.dtype).removeprefix("torch."),
            device=target.machine.device_name,
            progress=job.progress() if job and compiling else None,
            artifact=self._artifact if self._code else None,
            counters=self.counters,
        )
