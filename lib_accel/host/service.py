"""What the callbacks call: follow the WebUI's models and options, and say how things stand."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import torch
from torch import nn

from ..compile.doctor import Finding, examine
from ..compile.session import Session
from ..errors import AccelError
from ..runtime.accelerated import accelerated
from ..runtime.engine import Counters
from ..store import ArtifactStore, Group, groups, named
from . import webui
from .attachment import Attachment, Counts
from .clock import Clock

VAE_BYTES = 8 * 1024
"""Video memory that decoding takes, for a pixel: 256 channels at full size, several times, in float32."""


class Service:
    """One for the process; survives "Reload UI", which runs the script file again but keeps this module."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._session = Session()
        self._seen: weakref.WeakSet[nn.Module] = (
            weakref.WeakSet()
        )  # every UNet that was loaded, attached or not
        self._refused: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self.clock = Clock(webui.device)
        self._counts: list[Counts] = []  # of all attachments there ever were
        self._stale = False  # what is attached is not what the options say, until the image in the making is done

    def model_loaded(self, sd_model: Any) -> None:
        """The WebUI loaded a model, other weights into one, or another VAE beside one."""
        unet = webui.unet_of(sd_model)
        if unet is None:
            return
        with self._lock:
            self._seen.add(unet)
            if webui.enabled():
                self._attach(unet)

    def options_changed(self) -> None:
        """Apply what the user has set, to every model in memory, for the next image."""
        self._stale = True
        with webui.idle() as idle:
            if idle:
                self._refresh()

    def _refresh(self) -> None:
        """Only between images: it moves weights that a running one is reading."""
        with self._lock:
            if not self._stale:
                return
            self._stale = False  # once: for a value out of range this raises, the WebUI takes it back, and images go on
            wanted = webui.config() if webui.enabled() else None
            if wanted is None:
                self._session.cancel()
                self._session.forget_failures()
            for unet in list(self._seen):
                here = accelerated(unet)
                before = here.engine.config if here else None
                if before == wanted:
                    continue  # "Apply settings" calls once for each option, changed or not
                same = (
                    before
                    and wanted
                    and (before.backend, before.store) == (wanted.backend, wanted.store)
                )
                self._detach(unet, keep_compiling=bool(same))
                if wanted:
                    self._attach(unet)

    def before_images(self) -> None:
        """Between images: take up what the compiler has finished, and our place where it was lost to somebody who has gone."""
        with self._lock:
            self._refresh()
            unet = webui.unet_of(webui.current_model())
            if unet is None or not webui.enabled():
                return
            if accelerated(unet) is None:
                self._seen.add(unet)
                if unet not in self._refused:
                    self._attach(unet)
            for other in self._seen:
                parked = accelerated(other)
                if parked is not None and other is not unet:
                    parked.release_memory()
            here = accelerated(unet)
            if here is not None:
                here.install()
                here.take_up()

    def denoised(self, params: Any) -> None:
        """The sampler has called the UNet. `params.x: [B, 4, H/8, W/8]`.

        After the last call the VAE is next: where video memory is short, what we hold of it is its. (The step in `params` is
        counted after the call, in some samplers a call later.)
        """
        self.clock.stop()
        if params.sampling_step + 2 >= params.total_sampling_steps:
            here, (height, width) = self.current(), params.x.shape[-2:]
            if (
                here is not None
                and webui.free_memory() - here.engine.graph_bytes < 64 * height * width * VAE_BYTES
            ):
                here.release_memory()

    def shutdown(self) -> None:
        """Undo everything (the extension is being unloaded)."""
        with self._lock:
            self._session.cancel()
            for unet in list(self._seen):
                self._detach(unet)

    def _attach(self, unet: nn.Module) -> None:
        if accelerated(unet) is not None:
            return  # the same object with other weights: the engine follows them by itself
        self._refused.pop(unet, None)
        here = None
        try:
            here = Attachment(unet, webui.config(), self._session)
            self._counts.append(here.counts)
            here.install()  # first, so that the status can tell how far a blocking `prepare` is
            here.engine.prepare()
        except (AccelError, ValueError) as e:
            if here is not None:
                here.remove()
            self._refused[unet] = str(e)
            webui.say(f"this model is not accelerated: {e}")
            return
        s = here.engine.status
        webui.say(
            f"{s.architecture}, {s.dtype} on {s.device}: backend {s.backend}, {s.state}"
            + (f" ({s.reason})" if s.reason else "")
        )

    def _detach(self, unet: nn.Module, keep_compiling: bool = False) -> None:
        here = accelerated(unet)
        if here is None:
            return
        here.remove(keep_compiling)
        gc.collect()

    # -- what a person or a program asks for

    def build(self) -> None:
        """Make the loaded model's code if it is not there, whatever failed before. Raises AccelError when that cannot begin."""
        with self._lock:
            unet = webui.unet_of(webui.current_model())
            if unet is None or not webui.enabled():
                raise AccelError("no model is loaded, or acceleration is off: nothing to build")
            here = accelerated(unet)
            if here is not None and (here.engine.job is not None or here.engine.complete):
                return
            with webui.idle() as idle:  # attaching moves weights
                if not idle:
                    raise AccelError("an image is being made: ask again when it is done")
                self._session.forget_failures()
                self._detach(unet)
                self._attach(unet)
            if unet in self._refused:
                raise AccelError(self._refused[unet])

    def artifacts(self) -> list[Group]:
        return groups(self._store().list())

    def delete(self, key: str) -> bool:
        """Remove an artifact, a group of them, or the code of a loaded model, by its key.

        Return False when there is none. Code loaded from it keeps serving. Raises StoreError.
        """
        store = self._store()
        keys = {key} if store.contains(key) else set()
        keys |= {e.key for g in named(store.list(), key) if g.key == key for e in g.entries}
        here = [each for each in map(accelerated, self._seen) if each is not None]
        targets = [each.engine.target for each in here]
        keys |= {k for t in targets if t.key == key for k in t.keys.values() if store.contains(k)}
        for each in keys:
            store.discard(each, "deleted by the user")
        return bool(keys)

    def findings(self) -> list[Finding]:
        return examine(
            webui.device(),
            torch.float32 if webui.device().type == "cpu" else torch.float16,
            self._store(),
        )

    def _store(self) -> ArtifactStore:
        config = webui.config()
        return ArtifactStore(config.store, config.store_bytes, config.store_readonly)

    # -- telling

    def _sums(self) -> dict[str, int]:
        each = [c.to_dict() for c in self._counts]
        return {name: sum(c[name] for c in each) for name in Counts(Counters()).to_dict()}

    def served(self) -> tuple[int, str]:
        """(UNet calls that compiled code has computed, whichever model's; the current model's backend)."""
        here = self.current()
        return self._sums()["accelerated_calls"], here.engine.status.backend if here else ""

    def batch_done(self, calls_before: int) -> str | None:
        """Close a batch's times; the backend that served it, or None."""
        calls, backend = self.served()
        accelerated = calls > calls_before
        self.clock.finish(accelerated)
        return backend if accelerated else None

    def current(self) -> Attachment | None:
        return accelerated(webui.unet_of(webui.current_model()))

    def status(self) -> dict[str, Any]:
        """The document of `GET /accel/v1/status`. Waits for nothing, not even for a compiler that an image waits for."""
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
        }
        if not webui.enabled():
            return out
        if here is None:
            reason = (
                self._refused.get(unet, "the model is being loaded")
                if unet is not None
                else "no model is loaded yet"
            )
            return {**out, "state": "fallback", "reason": reason}
        self._take_up_if_idle(here)
        s = here.engine.status
        return {
            **out,
            "state": s.state,
            "reason": "; ".join(filter(None, (here.reason, s.reason))) or None,
            "backend": s.backend,
            "architecture": s.architecture,
            "dtype": s.dtype,
            "device": s.device,
            "progress": s.progress.to_dict() if s.progress else None,
            "artifact": s.artifact,
            "control_models": here.control_models,
        }

    def _take_up_if_idle(self, here: Attachment) -> None:
        job = here.engine.job  # once: images take it away
        if job is None or not job.done or not self._lock.acquire(blocking=False):
            return
        try:
            with webui.idle() as idle:  # never in the middle of an image
                if idle:
                    here.take_up()
        finally:
            self._lock.release()


service = Service()
