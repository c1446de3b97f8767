"""Follows the WebUI's models and options, and reports their status: what the callbacks call."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

from torch import nn

from ..compile.machine import free_memory
from ..compile.session import Session
from ..config import Config
from ..errors import AccelError
from ..runtime.accelerated import accelerated
from ..runtime.status import Counters
from . import stored_code, webui
from .clock import Clock
from .refusals import Refusals
from .unet.attachment import Attachment, AttachmentCounters
from .unet.comparison import Tally, summed

VAE_BYTES = 8 * 1024
"""Video memory that the VAE takes for a pixel: some float32 tensors of 256 channels, full size."""


class Service:
    """Everything that this extension holds in a WebUI process.

    There is one. It survives "Reload UI", which runs the script file again but keeps this module.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._session = Session()
        # every UNet that was loaded, accelerated or not
        self._seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._refused = Refusals()
        self.clock = Clock(webui.device)
        self._counts: list[AttachmentCounters] = []  # of all attachments there ever were
        self._options_changed = False  # and not yet applied
        self._around: object = None  # what the WebUI has switched on for the last image
        self._switched_on = True  # before a job's own settings replaced it

    def model_loaded(self, sd_model: Any) -> None:
        """Accelerate a model that the WebUI has loaded.

        It also calls this for other weights in the same model, and for another VAE.
        """
        unet = webui.unet_of(sd_model)
        if unet is None:
            return
        with self._lock:
            self._seen.add(unet)
            if webui.enabled():
                self._attach(unet)

    def options_changed(self) -> None:
        """Apply the options to every model in memory, before the next image at the latest.

        Raises ValueError for a value that means nothing: the WebUI then takes the change back.
        """
        webui.check_options()
        self._options_changed = True
        with webui.idle() as idle:
            if idle:
                self._refresh()

    def _refresh(self) -> None:
        """Apply changed options. Only between images: weights move, which a running image reads."""
        with self._lock:
            if not self._options_changed:
                return
            self._options_changed = False
            self._apply(webui.config() if webui.enabled() else None)

    def _apply(self, wanted: Config | None) -> None:
        """Accelerate every model as `wanted`, or none."""
        if wanted is None:
            self._session.cancel()
            self._session.forget_failures()
        for unet in list(self._seen):
            here = accelerated(unet)
            before = here.engine.config if here else None
            if before == wanted:
                continue  # "Apply settings" calls once for each option, changed or not
            self._detach(unet, keep_compiling=_same_code(before, wanted))
            if wanted:
                self._attach(unet)

    def before_job(self, p: Any) -> None:
        """Apply the options, before those of this job alone (`override_settings`) replace them.

        `p` is the WebUI's job.
        """
        with self._lock:
            self._switched_on = webui.enabled()
            if not self._switched_on and any(map(accelerated, self._seen)):
                self._options_changed = True  # switched on for a job alone, which has failed
            self._refresh()
            self.before_images(p)

    def after_job(self) -> None:
        """Switch off what was switched on for this job alone."""
        with self._lock:
            if not self._switched_on:
                self._apply(None)

    def before_images(self, p: Any = None) -> None:
        """Prepare the loaded model for images: apply options, serve what the compiler has finished.

        `p` is the job. Our forwards are put back where another extension had replaced them.
        """
        with self._lock:
            if not webui.has_own_options(p):
                self._refresh()
            unet = webui.unet_of(webui.current_model())
            if unet is None or not webui.enabled():
                return
            self._seen.add(unet)
            if accelerated(unet) is None and not self._refused.stands(unet):
                self._attach(unet)
            self._around = webui.switched_on(p)
            for each in filter(None, map(accelerated, self._seen)):
                each.begin_image(self._around)
                if each.unet is not unet:
                    each.release_memory()
                else:
                    each.install()
                    each.take_up()

    def denoised(self, params: Any) -> None:
        """Follow a UNet call of the sampler. `params.x: [B, 4, H/8, W/8]`.

        After the last call the VAE runs: if video memory is short, CUDA graphs and base weights
        are released for it. `sampling_step` can lag by one call, so this begins early.
        """
        self.clock.stop()
        here = self.current()
        if here is None or params.sampling_step + 2 < params.total_sampling_steps:
            return
        height, width = params.x.shape[-2:]
        free = free_memory(webui.device()) - here.engine.graph_bytes
        if free < 64 * height * width * VAE_BYTES:
            here.release_memory()

    def shutdown(self) -> None:
        """Undo everything: the extension is being unloaded."""
        with self._lock:
            self._session.cancel()
            for unet in list(self._seen):
                self._detach(unet)

    def _attach(self, unet: nn.Module) -> None:
        here = accelerated(unet)
        if here is not None:  # with other weights, which the engine follows by itself
            here.witness.start_anew()
            return
        self._refused.forget(unet)
        try:
            here = Attachment(unet, webui.config(), self._session)
            self._counts.append(here.counts)
            here.begin_image(self._around)
            here.install()  # before a blocking `prepare`, whose progress the status shows
            here.engine.prepare()
        except AccelError as e:
            if here is not None:
                here.remove()
            self._refused.add(unet, str(e))
            webui.say(f"this model is not accelerated: {e}")
            return
        s = here.engine.status
        webui.say(
            f"{s.architecture}, {s.dtype} on {s.device}: backend {s.backend}, {s.state}"
            + (f" ({s.reason})" if s.reason else "")
        )

    def _detach(self, unet: nn.Module, keep_compiling: bool = False) -> None:
        here = accelerated(unet)
        if here is not None:
            here.remove(keep_compiling)
            gc.collect()

    # -- what a person or a program asks for

    def build(self) -> None:
        """Compile the loaded model's code where it is missing, whatever failed before.

        Raises AccelError where that cannot begin.
        """
        with self._lock:
            unet = webui.unet_of(webui.current_model())
            if unet is None or not webui.enabled():
                raise AccelError("no model is loaded, or acceleration is off: nothing to build")
            here = accelerated(unet)
            if here is not None and (here.engine.job is not None or here.engine.is_stored):
                return
            with webui.idle() as idle:  # attaching moves weights
                if not idle:
                    raise AccelError("an image is being made: ask again when it is done")
                self._session.forget_failures()
                self._detach(unet)
                self._attach(unet)
            if reason := self._refused.reason(unet):
                raise AccelError(reason)

    def delete(self, key: str) -> bool:
        """Remove compiled code from the store, see `stored_code.delete`. Raises StoreError."""
        here = [each for each in map(accelerated, self._seen) if each is not None]
        return stored_code.delete(key, [each.engine.target for each in here])

    # -- status

    def _sums(self) -> dict[str, int]:
        each = [c.to_dict() for c in (AttachmentCounters(Counters()), *self._counts)]
        return {name: sum(c[name] for c in each) for name in each[0]}

    def served(self) -> tuple[int, str]:
        """Return how many UNet calls compiled code has computed, and the current backend."""
        here = self.current()
        return self._sums()["accelerated_calls"], here.engine.status.backend if here else ""

    def batch_done(self, calls_before: int) -> str | None:
        """End the timing of a batch; return the backend that served it, or None."""
        calls, backend = self.served()
        served = calls > calls_before
        self.clock.finish(served)
        return backend if served else None

    def current(self) -> Attachment | None:
        """Return what accelerates the loaded model, or None."""
        return accelerated(webui.unet_of(webui.current_model()))

    def status(self) -> dict[str, Any]:
        """Return the document of `GET /accel/v1/status`.

        It waits for nothing, not even for a compiler that an image waits for.
        """
        unet = webui.unet_of(webui.current_model())
        here = accelerated(unet)
        out: dict[str, Any] = {
            "enabled": webui.enabled(),
            "state": "off",
            "reason": None,
            "backend": "",
            "architecture": "",
            "dtype": "",
            "device": str(webui.device()),
            "progress": None,
            "artifact": None,
            "counters": self._sums(),
            "control_models": 0,
            **summed([c.tally for c in self._counts], here.counts.tally if here else Tally()),
        }
        if not webui.enabled():
            return out
        if here is None:
            reason = "no model is loaded yet"
            if unet is not None:
                reason = self._refused.reason(unet) or "the model is being loaded"
            return {**out, "state": "fallback", "reason": reason}
        self._take_up_if_idle(here)
        s = here.status
        return {
            **out,
            "state": s.state,
            "reason": s.reason,
            "backend": s.backend,
            "architecture": s.architecture,
            "dtype": s.dtype,
            "device": s.device,
            "progress": s.progress.to_dict() if s.progress else None,
            "artifact": s.artifact,
            "counters": self._sums(),  # again: finished code may just have been taken up
            "control_models": here.control_models,
        }

    def _take_up_if_idle(self, here: Attachment) -> None:
        job = here.engine.job  # read once: an image may clear it
        if job is None or not job.done or not self._lock.acquire(blocking=False):
            return
        try:
            with webui.idle() as idle:  # never in the middle of an image
                if idle:
                    here.take_up()
        finally:
            self._lock.release()


def _same_code(one: Config | None, other: Config | None) -> bool:
    """Return whether two configurations use the same compiled code."""
    if one is None or other is None:
        return False
    return (one.backend, one.store) == (other.backend, other.store)


service = Service()
