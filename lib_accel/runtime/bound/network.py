"""One network on compiled units: gets their code, follows the weights, does without what fails.

Nothing here waits for a compiler unless the configuration says so, and no image fails that the
network's own forward would have made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...compile.jobs import CompiledUnits, Job
from ...compile.machine import Machine, probe
from ...compile.session import Session
from ...compile.target import Target
from ...compile.toolchain import NO_CUDNN
from ...config import Config
from ...errors import BadWeights
from ...model.specs import Spec
from ..graphs.memory import KeptMemory
from ..provider import NO_BACKEND, Provider
from ..status import Counters, Status
from .binding import Binding, Borrower


class BoundNetwork(ABC):
    """What the engines of a UNet and of a VAE share: `network`, computed from its own weights.

    `clean` is the clean network that borrows them, `specs` are those of its layers. Images are
    computed on `device`, by default where the weights are, and in `dtype`, by default that of the
    weights, or float32 on a CPU that is faster in it. Calls must come from one thread at a time.
    `_bind` must be called at the end of `__init__`; it raises BadWeights.
    """

    memory: KeptMemory

    def __init__(
        self,
        network: nn.Module,
        clean: Borrower,
        specs: Mapping[str, Spec],
        config: Config | None,
        session: Session | None,
        device: torch.device | None,
        dtype: torch.dtype | None,
        machine: Callable[[torch.device], Machine] = probe,
    ):
        self.config, self._machine = config or Config(), machine
        self.device = device or next(network.parameters()).device
        self.wanted_dtype = dtype
        self.counters = Counters()
        self._provider = Provider(self.config, session or Session())
        self.binding = Binding(network, clean, specs, self.device, dtype)
        self._bound: CompiledUnits = {}

    # -- getting compiled code

    @property
    @abstractmethod
    def target(self) -> Target:
        """What has to be compiled for this network, as its weights are now."""

    @property
    def job(self) -> Job | None:
        """The job that makes this network's units, while there is one."""
        return self._provider.job

    @property
    def finished(self) -> bool:
        """Whether `take_up` has something to do."""
        return self._provider.finished

    @property
    def units(self) -> CompiledUnits:
        """The compiled units that serve; empty while there are none."""
        return self._provider.units

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that activations are computed in."""
        return self.binding.dtype

    @property
    def channels_last(self) -> bool:
        """Whether the units that serve read weights of convolutions channels-last on a GPU."""
        return self._provider.channels_last

    def prepare(self) -> None:
        """Load compiled units from the store, else start making them. Raises BadWeights."""
        if self.binding.moved():
            self._bind()
        self._provider.prepare(self.target)
        self._bind_new_units()

    def take_up(self) -> bool:
        """Begin to serve what a finished job has made. Call it between images.

        Returns whether anything changed.
        """
        if not self.finished:
            return False
        try:
            self._follow()  # weights of another dtype need another job
        except BadWeights:
            return False  # the model is unloaded or half moved; the next call says so
        self._provider.collect()
        for name in ("compiles", "compile_seconds", "compile_failures"):
            setattr(self.counters, name, getattr(self._provider, name))
        self._bind_new_units()
        return True

    def close(self, keep_compiling: bool = False) -> None:
        """Restore the network's memory layout and hold none of its weights; a call binds again.

        `keep_compiling` leaves a running job to the next network of this architecture.
        """
        self._provider.close(keep_compiling)
        self.binding.release()

    # -- following the weights

    def _bind(self) -> None:
        """Bind to the weights as they are now. Raises BadWeights."""
        self._bound = self._provider.units
        self.binding.bind(
            self._bound, self._provider.dtype, self.channels_last, clean_computes=True
        )
        self.counters.binds = self.binding.count

    def _bind_new_units(self) -> None:
        if self._provider.units is not self._bound:
            self._bind()

    def _follow(self) -> None:
        """Bind again where weights have moved, and prepare again where they have another dtype."""
        if self.units and self.device.type == "cuda" and not torch.backends.cudnn.enabled:
            self._provider.drop(NO_CUDNN)  # somebody has switched it off since
            self._bind()
        if not self.binding.moved():
            return
        before = self.binding.dtype
        self._bind()
        if self._provider.prepared and self.binding.dtype != before:
            self.prepare()

    # -- computing

    def _guard(self, compiled: Callable[[], Tensor], clean: Callable[[], Tensor]) -> Tensor:
        """Return `compiled()`; if it fails and `clean()` works, stop using compiled code."""
        for again in (False, True):  # once more, without what is kept for speed
            try:
                return compiled()
            except RuntimeError as e:
                error = e.with_traceback(None)  # its frames hold the activations of the whole call
            out_of_memory = self.memory.ran_out(error)
            if again or not (out_of_memory and self.memory.give_up()):
                break
        if isinstance(error, torch.cuda.OutOfMemoryError):
            try:
                raise error  # the host has its own ways to free memory
            finally:
                del error  # it refers to this frame
        out = clean()
        if self.units and not (out_of_memory or self.memory.ran_out()):
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._provider.drop(f"it failed while computing: {first_line}")
            self._bind()
        return out

    # -- status

    @property
    def is_stored(self) -> bool:
        """Whether compiled code serves and the store has it: there is nothing to build."""
        return self._provider.kept_bytes is not None and not self._provider.is_superseded

    @property
    def lacks_code(self) -> bool:
        """Whether compiled code is neither stored nor being made."""
        return not (self.is_stored or (self.job and not self.job.cancelled))

    @property
    def awaited(self) -> Job | None:
        """The job without whose code the chosen backend does not serve."""
        return self.job if self._provider.is_superseded or not self.units else None

    @property
    def can_compute(self) -> bool:
        """Whether any backend serves this device; elsewhere the network's own forward must."""
        return not self._provider.prepared or self._provider.backend != NO_BACKEND

    @property
    def status(self) -> Status:
        """How things stand now. Safe to read from any thread."""
        provider, target = self._provider, self.target
        job = provider.job  # read once: another thread may clear it
        compiling = job is not None and not job.done
        if provider.units:
            state = "ready"  # also where a better backend failed; the reason names it
        elif compiling:
            state = "compiling"
        elif provider.failures or not self.can_compute:
            state = "fallback"
        else:
            state = "eager"
        chosen = provider.units or compiling or not self.can_compute
        reasons = (provider.reason, *self._reasons())
        return Status(
            state=state,
            reason="; ".join(filter(None, reasons)) or None,
            backend=provider.backend if chosen else "eager",
            architecture=target.name,
            dtype=str(target.dtype).removeprefix("torch."),
            device=target.machine.device_name,
            progress=job.progress() if job and compiling else None,
            artifact=provider.artifact,
            counters=self.counters,
        )

    def _reasons(self) -> tuple[str | None, ...]:
        """Return why calls are not computed as fast as they could be."""
        return ()
