"""A real WebUI with the tests' models, and the same pictures made with it off and on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lib_accel.store.signing import generate_key, write_key
from lib_accel.tools.webui import process
from lib_accel.tools.webui.pictures import Pictures, make

DEFAULTS: dict[str, Any] = {
    "sd_vae": "Automatic",
    "CLIP_stop_at_last_layers": 1,
    "token_merging_ratio": 0.0,
    "token_merging_ratio_hr": 0.0,
    "hypertile_enable_unet": False,
    "hypertile_max_tile_unet": 256,
    "lora_functional": False,
    "sd_checkpoints_limit": 1,
    "s_min_uncond": 0.0,
    "s_min_uncond_all": False,
    "skip_early_cond": 0.0,
    "batch_cond_uncond": True,
}
"""The settings that tests change, at the WebUI's own values."""
PAYLOAD: dict[str, Any] = {
    "prompt": "a photo of a cat",
    "steps": 3,
    "width": 128,
    "height": 128,
    "seed": 1,
    "sampler_name": "Euler",
    "cfg_scale": 7,
}
KINDS_OF_MODEL = ("ckpt", "vae", "hypernetwork", "lora")
"""As in the flags --ckpt-dir, --vae-dir and so on."""


@dataclass
class Comparison:
    """The same picture without acceleration and with it, and what was counted in the latter."""

    decibels: float
    calls: int  # UNet calls that compiled code served
    host_calls: int  # UNet calls that it did not
    compiles: int
    status: dict[str, Any]
    off: Pictures
    on: Pictures

    @property
    def reason(self) -> str:
        """Why calls were not accelerated, or nothing."""
        return self.status["reason"] or ""

    @property
    def line(self) -> str:
        """The outcome in one line."""
        counts = f"calls {self.calls:3} compiled, {self.host_calls} host"
        seconds = f"off {self.off.seconds:5.2f} s, on {self.on.seconds:5.2f} s"
        return f"{self.decibels:5.1f} dB  {counts}  {seconds}  {self.reason}"


class Server(process.WebUI):
    """A WebUI on the CPU with compiled code in `store`; it has the models of `webui`.

    login: user:password of --api-auth.
    """

    def __init__(
        self,
        webui: Path,
        data: Path,
        store: Path,
        model: str,
        flags: Sequence[str] = (),
        extensions: Mapping[str, Path] | None = None,
        login: str | None = None,
    ):
        """Start it; return when a model is loaded. Raises WebUIFailed with the console's end."""
        self.store = store
        self.names: dict[str, str] = {}  # of control models in the WebUI's list
        own = [x for k in KINDS_OF_MODEL for x in (f"--{k}-dir", str(data.parent / k))]
        if "accel" in (extensions or {}):
            own += ["--accel-store", str(store), "--accel-store-key", str(key_of(store))]
        checkpoint = webui / "models" / "Stable-diffusion" / f"{model}.safetensors"
        flags = [*process.CPU_FLAGS, *flags, *own]
        super().__init__(webui, data, python_of(webui), checkpoint, flags, extensions, login=login)

    def memory(self) -> float:
        """Return the MB that its process takes."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def options(self, **values: Any) -> None:
        """Set options."""
        self.post("/sdapi/v1/options", values)

    def status(self) -> dict[str, Any]:
        """Return the extension's status."""
        return self.get("/accel/v1/status")

    def wait_ready(self, seconds: float = 1200) -> dict[str, Any]:
        """Wait until compiled code serves. Returns the status."""
        s = self.settled(timeout_s=seconds)
        assert s["state"] == "ready", s
        return s

    def use(self, model: str) -> dict[str, Any]:
        """Switch to a checkpoint and wait until compiled code serves it. Returns the status."""
        self.options(accel_enable=True, sd_model_checkpoint=model)
        return self.wait_ready()

    def make(self, route: str = "txt2img", **payload: Any) -> Pictures:
        """Make pictures. Raises Refused."""
        return make(self, PAYLOAD | payload, route)

    def compare(self, route: str = "txt2img", **payload: Any) -> Comparison:
        """Make the same picture off and on. Leaves acceleration on."""
        self.options(accel_enable=False)
        if route == "img2img":  # the WebUI's first one can differ from its repetition
            self.make(route, **payload)
        off = self.make(route, **payload)
        self.options(accel_enable=True)
        before = self.status()["counters"]
        on = self.make(route, **payload)
        status = self.status()
        calls, host_calls, compiles = (
            status["counters"][k] - before[k]
            for k in ("accelerated_calls", "host_calls", "compiles")
        )
        return Comparison(on.decibels(off), calls, host_calls, compiles, status, off, on)


def key_of(store: Path) -> Path:
    """Return the key file of a store, beside it: a run's own key would be another in each run."""
    key = store.with_name(f"{store.name}.key")
    if not key.exists():
        write_key(key, generate_key())
    return key


def python_of(webui: Path) -> Path:
    """Return the interpreter that a WebUI runs with. Raises WebUIFailed."""
    named = os.environ.get("ACCEL_WEBUI_PYTHON")
    return Path(named) if named else process.python_of(webui)
