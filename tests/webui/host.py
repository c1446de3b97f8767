"""A real WebUI as a child process: start it, talk to it, compare what it makes with acceleration off and on."""

from __future__ import annotations

import base64
import io
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

import numpy as np
import psutil
from PIL import Image

MIN_DB = 60.0  # float32: what differs is the order of additions
FLAGS = [
    "--skip-prepare-environment",
    "--skip-torch-cuda-test",
    "--skip-install",
    "--skip-version-check",
    "--skip-python-version-check",
]
FLAGS += ["--use-cpu", "all", "--no-half", "--precision", "full", "--api", "--no-download-sd-model"]
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


class Refused(Exception):
    """The server answered with an error; `code` is its HTTP status."""

    def __init__(self, code: int, text: str):
        super().__init__(f"{code}: {text[:600]}")
        self.code = code


KINDS_OF_MODEL = (
    "ckpt",
    "vae",
    "hypernetwork",
    "lora",
)  # as in the flags --ckpt-dir, --vae-dir, ...


@dataclass
class Pictures:
    pixels: list[np.ndarray]  # [H, W, 3] float64, 0 to 255
    texts: list[str]  # infotexts
    seconds: float

    def same(self, other: Pictures) -> bool:
        return len(self.pixels) == len(other.pixels) and all(
            map(np.array_equal, self.pixels, other.pixels)
        )

    def decibels(self, other: Pictures) -> float:
        """PSNR of the worst pair; 99 when identical, 0 when they are not the same pictures at all."""
        if [a.shape for a in self.pixels] != [b.shape for b in other.pixels] or not self.pixels:
            return 0.0
        errors = [((a - b) ** 2).mean() for a, b in zip(self.pixels, other.pixels, strict=True)]
        return 99.0 if max(errors) == 0 else float(10 * np.log10(255**2 / max(errors)))

    @property
    def served(self) -> bool:
        return all("Accel: " in t for t in self.texts)


@dataclass
class Comparison:
    decibels: float
    calls: int  # UNet calls that ran compiled code, in the picture with acceleration
    host_calls: int
    compiles: int
    status: dict[str, Any]
    off: Pictures
    on: Pictures


@dataclass
class Server:
    """A WebUI of its own data folder (settings, extensions); models and code are those of `webui`."""

    webui: Path
    data: Path
    store: Path
    python: Path
    flags: list[str] = field(default_factory=list)
    extensions: dict[str, Path] = field(default_factory=dict)  # by the name of their folder there
    login: str | None = None  # user:password for --api-auth
    names: dict[str, str] = field(
        default_factory=dict
    )  # of control models, as the WebUI lists them

    def start(self, model: str, seconds: float = 600) -> Server:
        (self.data / "extensions").mkdir(parents=True)
        (self.data / "ui-config.json").write_text(
            "{}"
        )  # as after a first start: some extensions need it
        for name, folder in self.extensions.items():
            (self.data / "extensions" / name).symlink_to(folder, target_is_directory=True)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        models = self.webui / "models"
        command = [
            self.python,
            "launch.py",
            *FLAGS,
            "--port",
            self.port,
            "--data-dir",
            self.data,
            "--models-dir",
            models,
            *self.flags,
        ]
        command += ["--ckpt", models / "Stable-diffusion" / f"{model}.safetensors"]
        for kind in KINDS_OF_MODEL:
            command += [f"--{kind}-dir", self.data.parent / kind]
        command += ["--accel-store", self.store] if "accel" in self.extensions else []
        environment = {
            **os.environ,
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }
        environment |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "SD_WEBUI_CACHE_DIR": str(self.webui / "cache"),
            "COMMANDLINE_ARGS": "",
        }
        self.log = (self.data / "server.log").open("w+")
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=self.webui,
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.5)
            if (
                "Startup time:" in self.console()
            ):  # a request before that can keep it from coming up
                self.post("/sdapi/v1/reload-checkpoint")  # answers when a model is loaded
                return self
        text = self.console()
        self.stop()
        raise RuntimeError(f"the WebUI did not come up:\n{text[-3000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def console(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text(errors="replace")

    def memory(self) -> float:
        """MB of the server process."""
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
        """The answer's JSON. Raises Refused."""
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
        return self.call("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        return self.call("POST", path, {} if body is None else body)

    def options(self, **values: Any) -> None:
        self.post("/sdapi/v1/options", values)

    def status(self) -> dict[str, Any]:
        return self.get("/accel/v1/status")

    def wait_ready(self, seconds: float = 1200) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while (
            (s := self.status())["state"] == "compiling"
            or s["reason"] == "the model is being loaded"
        ) and time.monotonic() < end:
            time.sleep(1)
        assert s["state"] == "ready", s
        return s

    def use(self, model: str) -> dict[str, Any]:
        """Switch to a checkpoint; waits for its code."""
        self.options(accel_enable=True, sd_model_checkpoint=model)
        return self.wait_ready()

    def make(self, route: str = "txt2img", **payload: Any) -> Pictures:
        body = {
            "prompt": "a photo of a cat",
            "steps": 3,
            "width": 128,
            "height": 128,
            "seed": 1,
            "sampler_name": "Euler",
            "cfg_scale": 7,
        }
        began = time.perf_counter()
        answer = self.post(f"/sdapi/v1/{route}", body | payload)
        seconds = time.perf_counter() - began
        pixels = [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(i))).convert("RGB"), dtype=np.float64)
            for i in answer["images"]
        ]
        return Pictures(pixels, json.loads(answer["info"])["infotexts"], seconds)

    def compare(self, route: str = "txt2img", **payload: Any) -> Comparison:
        """The same picture off and on. Leaves acceleration on."""
        self.options(accel_enable=False)
        if route == "img2img":
            self.make(route, **payload)  # the WebUI's own first one can differ from its repetition
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
    return "Basic " + base64.b64encode(login.encode()).decode()


def picture(width: int = 128, height: int = 128, mask: bool = False) -> str:
    """A PNG in base64: a pattern to start from, or a mask whose middle is to be painted."""
    y, x = np.mgrid[:height, :width]
    if mask:
        a = ((abs(x - width / 2) < width / 4) & (abs(y - height / 2) < height / 4)).astype(
            np.uint8
        ) * 255
    else:
        a = np.stack([x * 2 % 256, y * 2 % 256, (x + y) % 256], -1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(a).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def python_of(webui: Path) -> Path:
    """The interpreter a WebUI runs with."""
    told = os.environ.get("ACCEL_WEBUI_PYTHON")
    own = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    candidates = [Path(told)] if told else [webui.parent / "venv" / own, webui / "venv" / own]
    found = next((c for c in candidates if c.exists()), None)
    if found is None:
        raise FileNotFoundError(
            f"no Python at {' or '.join(map(str, candidates))}; set ACCEL_WEBUI_PYTHON"
        )
    return found
