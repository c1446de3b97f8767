"""A WebUI as a child process: start it with a data folder of its own, ask its API, stop it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .client import Client, WebUIFailed

FLAGS = (
    "--skip-prepare-environment",
    "--skip-torch-cuda-test",
    "--skip-install",
    "--skip-version-check",
    "--skip-python-version-check",
    "--no-download-sd-model",
    "--api",
)
CPU_FLAGS = ("--use-cpu", "all", "--no-half", "--precision", "full")
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "COMMANDLINE_ARGS": "",
}
NOT_COPIED = (".git", ".venv", "__pycache__")


def python_of(webui: Path) -> Path:
    """Return the interpreter that a WebUI runs with, in `venv` inside or beside its folder.

    Raises WebUIFailed where there is none.
    """
    own = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    candidates = [folder / "venv" / own for folder in (webui, webui.parent)]
    found = next((c for c in candidates if c.exists()), None)
    if found is None:
        tried = " or ".join(map(str, candidates))
        raise WebUIFailed(f"no Python at {tried}; expected the WebUI's own. Give --python FILE")
    return found


class WebUI(Client):
    """A running WebUI of the folder `webui`.

    Its settings and extensions are in `data`, which is made; models and code are those of `webui`.
    `extensions` are folders by the name they get there.
    """

    started = ("Startup time:", "Model loaded in")
    """What it has printed when it can be asked: Forge loads its model with the first image."""

    def __init__(
        self,
        webui: Path,
        data: Path,
        python: Path,
        checkpoint: Path,
        flags: Sequence[str] = (),
        extensions: Mapping[str, Path] | None = None,
        timeout_s: float = 600,
        login: str | None = None,
    ):
        """Start it; return when a model is loaded. Raises WebUIFailed with the console's end."""
        (data / "extensions").mkdir(parents=True)
        # some extensions expect this file, which exists from the second start on
        (data / "ui-config.json").write_text("{}", encoding="utf-8")
        for name, folder in (extensions or {}).items():
            _provide(folder, data / "extensions" / name)
        self.port = _free_port()
        super().__init__(f"http://127.0.0.1:{self.port}", login)
        arguments = ["--port", self.port, "--data-dir", data, *_models(webui, data)]
        command = [python, "launch.py", *FLAGS, *arguments, "--ckpt", checkpoint, *flags]
        self._log = (data / "server.log").open("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=webui,
            env=os.environ | ENVIRONMENT | {"SD_WEBUI_CACHE_DIR": str(data / "cache")},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_for_model(timeout_s)
        except BaseException:
            self.stop()
            raise

    def _wait_for_model(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        # A request before the server is up can keep it from coming up. One that needs the model
        # before it is loaded makes WebUI 1.6 load it twice at once, and the two collide.
        while not all(words in self.console() for words in self.started):
            if time.monotonic() > end or self.process.poll() is not None:
                raise WebUIFailed(f"the WebUI did not start:\n{self.console()[-3000:]}")
            time.sleep(0.5)

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def console(self) -> str:
        """Return what the WebUI has printed so far."""
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def running(*args: Any, **kwargs: Any) -> Iterator[WebUI]:
    """Start a WebUI, with the arguments of `WebUI`, for the length of a `with`."""
    webui = WebUI(*args, **kwargs)
    try:
        yield webui
    finally:
        webui.stop()


def _provide(folder: Path, place: Path) -> None:
    """Make an extension's folder appear at `place`: by a link, or by a copy without links."""
    try:
        place.symlink_to(folder.resolve(), target_is_directory=True)
    except OSError:  # Windows, for a user who may not make links
        shutil.copytree(folder, place, ignore=shutil.ignore_patterns(*NOT_COPIED))


def _models(webui: Path, data: Path) -> list[str | Path]:
    """Make the WebUI's models appear in `data`: by a link, or by a flag, which needs 1.10."""
    models = webui / "models"
    try:
        (data / "models").symlink_to(models.resolve(), target_is_directory=True)
    except OSError:  # Windows, for a user who may not make links
        return ["--models-dir", models]
    return []


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
