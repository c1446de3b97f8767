"""Follows the WebUI's models and options, and reports their status: what the callbacks call."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

from torch import nn

from ..compile.backends.eager import Eager
from ..compile.jobs import Job
from ..compile.session import Session
from ..config import Config
from ..errors import AccelError
from ..runtime.accelerated import accelerated
from ..runtime.status import Status
from . import stored_code, webui
from .clock import Clock
from .models import Models
from .unet.attachment import Attachment
from .unet.comparison import Tally, summed
from .vae.vaes import Vaes
from .waiting import images_wait, wait


class Service:
    """Everything that this extension holds in a WebUI process.

    There is one. It survives "Reload UI", which runs the script file again but keeps this module.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._session = Session(webui.host.attention)
        self._models = Models()
        self.vaes = Vaes(self._session)
        self.clock = Clock(webui.device, self._models.checking)
        self.images: Counter[tuple[str, str]] = Counter()  # by backend and, without one, reason
        self._options: dict[str, Any] = {}  # as they were last, and meant something
        self._options_changed = False  # and not yet applied
        self.builds_later = False  # when the image that is being made is done
        self._around: object = None  # what the WebUI has switched on for the last image
        self._standing: Config | None = None  # before a job's own settings replaced it

    def fetch_ahead(self) -> None:
        """Begin to fetch what the first model will need. The WebUI has yet to load it."""
        stored_code.fetch_ahead(self._session)

    def model_loaded(self, sd_model: Any) -> None:
        """Accelerate a model that the WebUI has loaded, or its other weights or VAE."""
        unet = webui.host.unet_of(sd_model)
        if unet is None:
            return
        with self._lock:
            self._models.add(unet)
            if webui.enabled():
                self._attach(unet)
            self._follow_vae(sd_model)

    def _follow_vae(self, sd_model: Any) -> None:
        self.vaes.follow(sd_model, webui.config() if webui.vae_enabled() else None)

    def options_changed(self) -> list[str]:
        """Apply the options to every model in memory, before the next image at the latest.

        Returns a sentence on each that meant nothing and was replaced. An error would leave its
        traceback in the console, and the page would hear of neither.
        """
        replaced = webui.mend_options(self._options)
        self._options_changed = True
        with webui.idle() as idle:
            if idle:
                self._refresh()
        return replaced

    def _refresh(self) -> None:
        """Apply what the user has changed, between images only: one that runs reads the weights."""
        with self._lock:
            if not self._options_changed:
                return
            self._options_changed = False
            wanted = webui.config() if webui.enabled() else None
            if any(each.engine.config != wanted for each in self._models.attachments):
                self._session.forget_failures()
            self._apply(wanted)
            self._follow_vae(webui.current_model())

    def _apply(self, wanted: Config | None) -> None:
        """Accelerate every model as `wanted`, or none."""
        if wanted is None:
            self._session.cancel()
            self._models.leave_vaes()
        for unet in self._models.unets:
            here = accelerated(unet)
            before = here.engine.config if here else None
            if before == wanted:
                continue  # "Apply settings" calls once for each option, changed or not
            keeps = before is not None and before.shares_code(wanted)
            self._models.detach(unet, keep_compiling=keeps)
            if wanted:
                self._attach(unet, wanted)

    def _restore(self, wanted: Config | None) -> None:
        """Accelerate as `wanted` where a job's own settings have changed that."""
        if any(each.engine.config != wanted for each in self._models.attachments):
            self._apply(wanted)

    def before_job(self, p: Any) -> None:
        """Apply the options, before `override_settings` of the WebUI's job `p` replace them."""
        with self._lock:
            self._standing = webui.config() if webui.enabled() else None
            self._refresh()
            self._restore(self._standing)  # after a job with settings of its own that has failed
            self._prepare(p)

    def after_job(self) -> None:
        """Undo what was set for this job alone."""
        with self._lock:
            self._restore(self._standing)
            vae = self._standing if webui.vae_enabled() else None
            self.vaes.follow(webui.current_model(), vae)

    def before_images(self, p: Any = None) -> None:
        """Prepare the loaded model for the images of the job `p`; wait where the user wants it."""
        self._prepare(p)
        while (here := self.current()) and (job := here.engine.awaited) and wait(job):
            with self._lock:
                if not here.take_up():
                    return
        engines = self.vaes.engines(webui.current_model())
        jobs = [job for each in engines if (job := each.awaited)]
        if jobs and not (here and here.engine.awaited) and all(map(wait, jobs)):
            with self._lock:
                self._follow_vae(webui.current_model())

    def _prepare(self, p: Any) -> None:
        """Follow the options and the loaded model; put back our forwards that others replaced."""
        with self._lock:
            if not webui.has_own_options(p):
                self._refresh()
            elif webui.enabled():
                self._restore(webui.config())
            self._build()
            self._follow_vae(webui.current_model())
            unet = webui.host.unet_of(webui.current_model())
            if unet is None or not webui.enabled():
                return
            self._models.add(unet)
            self._models.watch_vae(webui.current_model())
            if accelerated(unet) is None and not self._models.stays_refused(unet):
                self._attach(unet)
            self._around = webui.switched_on(p)
            for each in self._models.attachments:
                each.begin_image(self._around)
                if each.unet is not unet:
                    each.engine.memory.give_up()
                else:
                    each.install()
                    each.take_up()

    def before_sampling(self, sd_model: Any) -> None:
        """Tell the WebUI how much video memory CUDA graphs hold, before it counts what is free."""
        here = accelerated(webui.host.unet_of(sd_model))
        if here and here.engine.graphs and (held := here.engine.graphs.bytes):
            webui.host.keep_free(sd_model, held)

    def shutdown(self) -> None:
        """Undo everything: the extension is being unloaded."""
        with self._lock:
            self._session.cancel()
            for unet in self._models.unets:
                self._models.detach(unet)
            self._models.leave_vaes()
            self.vaes.follow(None, None)

    def _attach(self, unet: nn.Module, config: Config | None = None) -> None:
        here = accelerated(unet)
        if here is not None:  # with other weights, which the engine follows by itself
            here.witness.start_anew()
            return
        self._models.attach(unet, config or webui.config(), self._session, self._around)

    # -- what a person or a program asks for

    def build(self) -> None:
        """Compile what the loaded model lacks, after the image that is being made if there is one.

        Raises AccelError where that cannot begin.
        """
        with self._lock:
            unet = webui.host.unet_of(webui.current_model())
            if not webui.enabled():
                raise AccelError("Acceleration is off: there is nothing to build")
            if unet is None:
                raise AccelError("No model is loaded: there is nothing to build")
            with webui.idle() as idle:  # attaching moves weights
                self.builds_later = True
                if idle:
                    self._build()
            if reason := self._models.refusal(unet):
                raise AccelError(reason)

    def _build(self) -> None:
        """Begin the build that was asked for, if any. Only between images."""
        asked, self.builds_later = self.builds_later, False
        unet = webui.host.unet_of(webui.current_model())
        if not asked or unet is None or not webui.enabled():
            return
        here, vae = accelerated(unet), self.vaes.engines(webui.current_model())
        engines = [here.engine, *vae] if here else vae  # in the order in which they are compiled
        missing = [each for each in engines if each.lacks_code]
        if here is not None and not missing:
            return
        self._session.forget_failures()
        if here is None:
            self._attach(unet)
        for each in missing:  # what serves goes on until its successor is there
            each.prepare()

    def cancel_build(self) -> bool:
        """Stop the compiler until it is asked for again; return whether it was at work."""
        self.builds_later = False
        return self._session.cancel(webui.config())

    def delete(self, key: str) -> bool:
        """Remove compiled code from the store, see `stored_code.delete`. Raises StoreError."""
        unets = [each.engine.target for each in self._models.attachments]
        return stored_code.delete(key, [*unets, *self.vaes.targets()])

    # -- status

    def jobs(self) -> list[Job]:
        """Return the jobs that make code for the loaded model and its VAE."""
        here = self.current()
        own = here.engine.job if here else None
        return [*filter(None, [own]), *self.vaes.jobs(webui.current_model())]

    def served(self) -> tuple[dict[str, int], str]:
        """Return how many UNet calls each way has computed so far, and the current backend."""
        here = self.current()
        return self._models.sums(), here.engine.status.backend if here else ""

    def note_images(self, count: int, backend: str) -> None:
        """Note that images were made, by a backend or with "" by the WebUI's own code."""
        why = self._state(self.current()).reason or "none"
        self.images[backend, why if backend in ("", Eager.name) else ""] += count

    def measured(self) -> dict[str, float]:
        """Return what only the metrics show."""
        return {**vars(self._session.fetched()), **self._models.measured()}

    def current(self) -> Attachment | None:
        """Return what accelerates the loaded model, or None."""
        return accelerated(webui.host.unet_of(webui.current_model()))

    def status(self) -> dict[str, Any]:
        """Return the document of `GET /accel/v1/status`. It waits for nothing."""
        here = self.current()
        if here is not None and webui.enabled():
            self._take_up_if_idle(here)
        return {
            "enabled": webui.enabled(),
            **self._state(here).to_dict(),
            "images_wait": images_wait(),
            "vae": self.vaes.status(webui.current_model()),
            "phases": self.clock.phases,
            "counters": self._models.sums(),
            "control_models": here.control_models if here else 0,
            "speeds": here.witness.trial.known if here else [],
            **summed(self._models.tallies, here.counts.tally if here else Tally()),
        }

    def _state(self, here: Attachment | None) -> Status:
        if here is not None and webui.enabled():
            return here.status
        off = Status("off", None, "", "", "", str(webui.device()))
        if not webui.enabled():
            return off
        reason = self._models.why_not(webui.host.unet_of(webui.current_model()))
        return replace(off, state="fallback", reason=reason)

    def _take_up_if_idle(self, here: Attachment) -> None:
        finished = here.engine.finished or self.vaes.finished(webui.current_model())
        if not (finished or self.builds_later) or not self._lock.acquire(blocking=False):
            return
        try:
            with webui.idle() as idle:  # never in the middle of an image
                if idle:
                    self._build()
                    here.take_up()
                    self._follow_vae(webui.current_model())
        finally:
            self._lock.release()


service = Service()
