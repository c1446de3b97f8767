"""What a person or a program asks about the store and this machine."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from modules import sd_models, shared
from safetensors import SafetensorError, safe_open

from ..compile.backends.tensorrt.backend import TensorRT, wanted
from ..compile.doctor import Finding, examine
from ..compile.machine import probe
from ..compile.session import BACKENDS, Eager, Session, of_machine
from ..compile.target import Target
from ..compile.units import units_of
from ..config import Config
from ..errors import AccelError
from ..model import presets
from ..model.architecture import Architecture
from ..model.vae.network import DECODER, ENCODER, Half
from ..runtime.status import Status
from ..store import ArtifactStore, Group, groups, named
from ..store.cleanup import is_artifact
from ..store.exchange.remote import Remote
from ..store.exchange.shared import store_of
from . import webui

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."


def artifacts() -> list[Group]:
    """Return the artifacts of the store, grouped by what they were made for."""
    return groups(_store().list())


def backends(target: Target) -> dict[str, str | None]:
    """Return every backend, with why it cannot serve `target` at once, without compiling, or None.

    Where it could after compiling, the reason is "".
    """
    store, config, found = _store(), webui.config(), {}
    for backend in (kind() for kind in BACKENDS):
        found[backend.name] = backend.why_not(target, store, config)
        if found[backend.name] is None and backend.name != Eager.name:
            found[backend.name] = None if backend.kept_bytes(target, store) else ""
    return found


def here() -> dict[str, Any]:
    """Return what compiled code must have been made for to serve in this WebUI."""
    return of_machine(probe(webui.device()))


def keys_in_use(status: Status, target: Target) -> set[str]:
    """Return the keys of the stored code that serves `target`."""
    if status.artifact is None:
        return set()
    return {*(wanted(target) if status.backend == TensorRT.name else target.keys.values())}


def delete(key: str, loaded: Iterable[Target]) -> bool:
    """Remove an artifact, a group of them, or the code of a loaded model, by its key.

    Return False when there is none. Code loaded from it keeps serving. Raises StoreError.
    """
    store = _store()
    keys = {key} if store.contains(key) else set()
    keys |= {e.key for g in named(store.list(), key) if g.key == key for e in g.entries}
    of_loaded = ({*t.keys.values(), *wanted(t)} for t in loaded if t.key == key)
    keys |= {k for each in of_loaded for k in each if store.contains(k)}
    for each in keys:
        store.discard(each, "deleted by the user")
    return bool(keys)


def findings() -> list[Finding]:
    """Return what works on this machine, what does not, and what to do about it."""
    try:
        return [*folder_notes(), *examine(*_device(), _store())]
    except AccelError as e:
        return [Finding("problem", "the artifact store cannot be used", str(e))]


def folder_notes() -> list[Finding]:
    """Return what looks like a mistake in the name of the folder that the user has given.

    Raises AccelError where it cannot be used.
    """
    named, store = webui.flag("accel_store") or os.environ.get("ACCEL_STORE"), _store()
    if not named or webui.flag("accel_disable"):
        return []
    store.check()
    if "://" in named:
        trust = [Finding("note", why, _SIGNED)] if (why := _trusts_nobody()) else []
        return [*trust, *_shown_to_all()]
    if not Path(named).expanduser().is_absolute():
        return [Finding("note", f"{named} is no full path: compiled code is kept in {store.root}")]
    if store.root.parent.exists():
        return []
    what = f"neither {store.root} nor the folder that it would lie in exists yet"
    return [Finding("note", what, "both are made with the first code; is the name right?")]


def _shown_to_all() -> list[Finding]:
    """Return that the WebUI shows the password of the shared store, as `/internal/sysinfo` does."""
    url = webui.flag("accel_store") or ""
    if "://" not in url or not Remote(url).has_secrets:
        return []
    what = "everybody who reaches this WebUI can read the password in --accel-store"
    advice = "name the URL in ACCEL_STORE instead, and change the password"
    return [Finding("problem", what, advice)]


_SIGNED = "name --accel-trusted-keys, or --accel-store-key with a key that all machines have"


def _trusts_nobody() -> str | None:
    """Return that nothing in the shared store can serve here, or None."""
    config = webui.config()
    if config.trusted_keys or config.store_key:
        return None
    return f"code from {Remote(config.remote).shown} is refused: nobody is trusted to sign it"


def check() -> None:
    """Raise StoreError where the folder cannot hold compiled code."""
    _store().check()


def cannot_serve() -> dict[str, str]:
    """Return why backends serve no model on this machine, by their names."""
    device, dtype = _device()
    stored = False
    try:
        store, config = _store(), webui.config()
        with contextlib.suppress(OSError):  # the backend says what is wrong with the store
            stored = any(map(is_artifact, store.root.iterdir()))
        # code in the store may be of any model, and needs no compiler
        target = Target(() if stored else units_of(presets.sd1()), dtype, device, probe(device))
        why = {kind.name: kind().why_not(target, store, config) for kind in BACKENDS}
    except AccelError as e:
        return {"aoti": str(e)}
    return {name: reason for name, reason in why.items() if reason}


def fetch_ahead(session: Session) -> None:
    """Begin to fetch from the shared store what the first model will need, beside its loading."""
    config = webui.config()
    if config.remote and webui.enabled():
        threading.Thread(target=_fetch_ahead, args=(session, config), daemon=True).start()


def _fetch_ahead(session: Session, config: Config) -> None:
    chosen = sd_models.checkpoint_aliases.get(str(shared.opts.data.get("sd_model_checkpoint")))
    found = chosen or next(iter(sd_models.checkpoints_list.values()), None)
    store = store_of(config)
    for target in _targets_in(found.filename) if found else ():
        session.fetch(target, store, config)


def _targets_in(file: str) -> Iterator[Target]:
    """Yield what has to be compiled for a checkpoint, as the WebUI will load it.

    Nothing for another format or model: its code is fetched once it is loaded.
    """
    device, halves = webui.device(), (DECODER, ENCODER) if webui.vae_enabled() else ()
    wide = [webui.flag("no_half"), webui.flag("no_half") or webui.flag("no_half_vae")]
    unet, vae = (torch.float32 if each else torch.float16 for each in wide)
    try:
        with safe_open(file, framework="pt") as tensors:
            architecture = Architecture.from_shapes(_shapes_in(tensors, _UNET))
            yield Target.of_unet(architecture, unet, device, probe(device))
            for kind in halves:
                half = Half.from_shapes(_shapes_in(tensors, f"{_VAE}{kind}."))
                layers = dict(half.layers).values()
                yield Target.of_layers(half.name, layers, vae, device, probe(device))
    except (AccelError, OSError, SafetensorError):
        return


def _shapes_in(tensors: Any, prefix: str) -> dict[str, list[int]]:
    """Return the shapes of a network of an open checkpoint, by the names of its parameters."""
    names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118
    return {name[len(prefix) :]: tensors.get_slice(name).get_shape() for name in names}


def _device() -> tuple[torch.device, torch.dtype]:
    device = webui.device()
    return device, torch.float32 if device.type == "cpu" else torch.float16


def _store() -> ArtifactStore:
    return store_of(webui.config())
