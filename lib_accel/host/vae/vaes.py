"""The VAEs that the WebUI has loaded: which halves are accelerated, and why others are refused."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from ...compile.jobs import Job
from ...compile.session import Session
from ...compile.target import Target
from ...config import Config
from ...errors import AccelError
from ...model.vae.network import DECODER, ENCODER
from ...runtime.accelerated import accelerated
from ...runtime.status import Counters, Status
from ...runtime.vae import VaeEngine
from .. import webui
from .attachment import VaeAttachment

BEGINS = "it begins with the next image"
"""Why a VAE is not accelerated that was loaded while an image was being made."""


class Vaes:
    """The decoder and the encoder of every model that was loaded. It keeps none of them alive.

    They share the compiled code and the jobs of `session` with the UNets.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._refused: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._counts: list[Counters] = []  # of all halves there ever were

    def follow(self, sd_model: Any, config: Config | None) -> None:
        """Accelerate the VAE of a model as `config` says, or no VAE at all. Idempotent.

        Only between images: weights move, which a running image reads.
        """
        for half in list(self._seen):
            here = _attachment(half)
            if here is not None and here.engine.config != config:
                here.remove(keep_compiling=here.engine.config.shares_code(config))
        if config is None:
            return
        for half in halves_of(sd_model).values():
            here = _attachment(half)
            if here is None:
                self._attach(half, config)
            else:
                here.install()
                here.take_up()

    def _attach(self, half: nn.Module, config: Config) -> None:
        here = None
        try:
            here = VaeAttachment(half, config, self._session)
            here.install()
            here.engine.prepare()
        except AccelError as error:
            if here is not None:
                here.remove()
            if self._refused.get(half) != str(error):
                self._refused[half] = str(error)
                webui.say(f"this VAE is not accelerated: {error}")
            return
        self._seen.add(half)
        self._counts.append(here.engine.counters)
        self._refused.pop(half, None)
        webui.say(here.engine.status.sentence)

    def engines(self, sd_model: Any) -> list[VaeEngine]:
        """Return those that compute the VAE of a model."""
        found = map(_attachment, halves_of(sd_model).values())
        return [here.engine for here in found if here is not None]

    def jobs(self, sd_model: Any) -> list[Job]:
        """Return the jobs that make code for the VAE of a model."""
        return [each.job for each in self.engines(sd_model) if each.job is not None]

    def targets(self) -> list[Target]:
        """Return what has to be compiled for every VAE that is accelerated."""
        return [here.engine.target for half in list(self._seen) if (here := _attachment(half))]

    def served(self, sd_model: Any) -> tuple[dict[str, int], str]:
        """Return how many calls compiled code has computed, and the backend of a model's VAE."""
        backend = next((each.status.backend for each in self.engines(sd_model)), "")
        return {"accelerated_calls": sum(c.accelerated_calls for c in self._counts)}, backend

    def finished(self, sd_model: Any) -> bool:
        """Return whether there is code that the VAE of a model can begin to use."""
        return any(each.finished for each in self.engines(sd_model))

    def status(self, sd_model: Any) -> dict[str, Any]:
        """Return how the halves of a model's VAE stand, by their kind, for the status."""
        return {kind: self._state(half) for kind, half in halves_of(sd_model).items()}

    def _state(self, half: nn.Module) -> dict[str, Any]:
        here = _attachment(half)
        if here is None:
            reason = self._refused.get(half) or BEGINS
            if not webui.vae_enabled():
                return _row(Status("off", None, "", "", "", ""), 0)
            return _row(Status("fallback", reason, "", "", "", ""), 0)
        return _row(here.status, here.host_calls)


def halves_of(sd_model: Any) -> dict[str, nn.Module]:
    """Return the decoder and the encoder of a model's VAE, as far as it has them."""
    vae = webui.host.vae_of(sd_model)
    found = {kind: getattr(vae, kind, None) for kind in (DECODER, ENCODER)}
    return {kind: half for kind, half in found.items() if isinstance(half, nn.Module)}


def _attachment(half: nn.Module) -> VaeAttachment | None:
    return accelerated(half)


def _row(status: Status, host_calls: int) -> dict[str, Any]:
    told = status.to_dict()
    names = ("state", "reason", "backend", "progress", "artifact")
    return {
        **{name: told[name] for name in names},
        "accelerated_calls": status.counters.accelerated_calls,
        "host_calls": host_calls,
    }
