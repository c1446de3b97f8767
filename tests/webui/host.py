"""A real WebUI as a child process: start it, talk to it, make pictures with it."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from .pictures import Pictures

FLAGS = [
    "--skip-prepare-environment",
    "--skip-torch-cuda-test",
    "--skip-install",
    "--skip-version-check",
    "--skip-python-version-check",
    *("--use-cpu", "all"),
    "--no-half",
    *("--precision", "full"),
    "--api",
    "--no-download-sd-model",
]
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
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "COMMANDLINE_ARGS": "",
}
KINDS_OF_MODEL = ("ckpt", "vae", "hypernetwork", "lora")
"""As in the flags --ckpt-dir, --vae-dir and so on."""


class Refused(Exception):
    """The server answered with an error; `code` is its HTTP status."""

    def __init__(self, code: int, text: str):
        super().__init__(f"{code}: {text[:600]}")
        self.code = code


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


@dataclass
class Server:
    """A WebUI with a data folder of its own (settings, extensions); models are those of `webui`."""

    webui: Path
    data: Path
    store: Path
    python: Path
    flags: list[str] = field(default_factory=list)
    extensions: dict[str, Path] = field(default_factory=dict)  # by the name of their folder
    login: str | None = None  # user:password of --api-auth
    names: dict[str, str] = field(default_factory=dict)  # of control models in the WebUI's list

    def start(self, model: str, seconds: float = 600) -> Server:
        """Start it and return when a model is loaded. Raises RuntimeError with its console."""
        (self.data / "extensions").mkdir(parents=True)
        # there is one after a first start, and some extensions need it
        (self.data / "ui-config.json").write_text("{}")
        for name, folder in self.extensions.items():
            (self.data / "extensions" / name).symlink_to(folder, target_is_directory=True)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = (self.data / "server.log").open("w+")
        self.process = subprocess.Popen(
            self._command(model),
            cwd=self.webui,
            env=os.environ | ENVIRONMENT | {"SD_WEBUI_CACHE_DIR": str(self.webui / "cache")},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.5)
            if "Startup time:" in self.console():  # an earlier request can keep it from starting
                self.post("/sdapi/v1/reload-checkpoint")  # answers when a model is loaded
                return self
        text = self.console()
        self.stop()
        raise RuntimeError(f"the WebUI did not come up:\n{text[-3000:]}")

    def _command(self, model: str) -> list[str]:
        models = self.webui / "models"
        command = [self.python, "launch.py", *FLAGS, "--port", self.port, "--data-dir", self.data]
        command += ["--models-dir", models, *self.flags]
        command += ["--ckpt", models / "Stable-diffusion" / f"{model}.safetensors"]
        for kind in KINDS_OF_MODEL:
            command += [f"--{kind}-dir", self.data.parent / kind]
        command += ["--accel-store", self.store] if "accel" in self.extensions else []
        return list(map(str, command))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def console(self) -> str:
        """Return what it has printed."""
        self.log.flush()
        return Path(self.log.name).read_text(errors="replace")

    def memory(self) -> float:
        """Return the MB that its process takes."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    # -- requests

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float = 1800,
    ) -> Any:
        """Return the answer's JSON. Raises Refused."""
        headers = {"Content-Type": "application/json", **(headers or {})}
        if self.login and "Authorization" not in headers:
            headers["Authorization"] = basic(self.login)
        data = (
            None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as r:
                return json.loads(r.read() or b"null")
        except urllib.error.HTTPError as e:
            with e:
                raise Refused(e.code, e.read().decode(errors="replace")) from None

    def get(self, path: str) -> Any:
        """Return the answer to a GET."""
        return self.call("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        """Return the answer to a POST."""
        return self.call("POST", path, {} if body is None else body)

    def options(self, **values: Any) -> None:
        """Set options."""
        self.post("/sdapi/v1/options", values)

    def status(self) -> dict[str, Any]:
        """Return the extension's status."""
        return self.get("/accel/v1/status")

    def wait_ready(self, seconds: float = 1200) -> dict[str, Any]:
        """Wait until compiled code serves. Returns the status."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            s = self.status()
            if s["state"] != "compiling" and s["reason"] != "the model is being loaded":
                break
            time.sleep(1)
        assert s["state"] == "ready", s
        return s

    def use(self, model: str) -> dict[str, Any]:
        """Switch to a checkpoint and wait until compiled code serves it. Returns the status."""
        self.options(accel_enable=True, sd_model_checkpoint=model)
        return self.wait_ready()

    def make(self, route: str = "txt2img", **payload: Any) -> Pictures:
        """Make pictures. Raises Refused."""
        began = time.perf_counter()
        answer = self.post(f"/sdapi/v1/{route}", PAYLOAD | payload)
        seconds = time.perf_counter() - began
        return Pictures.decode(answer["images"], json.loads(answer["info"])["infotexts"], seconds)

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


def basic(login: str) -> str:
    """Return the header of basic authentication for `user:password`."""
    return "Basic " + base64.b64encode(login.encode()).decode()


def python_of(webui: Path) -> Path:
    """Return the interpreter that a WebUI runs with. Raises FileNotFoundError."""
    named = os.environ.get("ACCEL_WEBUI_PYTHON")
    own = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    candidates = [Path(named)] if named else [webui.parent / "venv" / own, webui / "venv" / own]
    found = next((c for c in candidates if c.exists()), None)
    if found is None:
        tried = " or ".join(map(str, candidates))
        raise FileNotFoundError(f"no Python at {tried}; set ACCEL_WEBUI_PYTHON")
    return found
