"""A real Forge or reForge on the CPU."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib_accel.tools.webui import process
from lib_accel.tools.webui.pictures import Pictures, make

from ..webui import host

DEFAULTS: dict[str, Any] = {"token_merging_ratio": 0.0, "accel_enable": True}
"""The settings that tests change, at Forge's own values."""


class Server(host.Server):
    """A Forge with compiled code in `store`; it has the models of its folder."""

    started = ("Startup time:",)

    def __init__(self, forge: Path, data: Path, store: Path, flags: Sequence[str] = ()):
        """Start it, without a model. Raises WebUIFailed with the console's end."""
        self.store, here = store, Path(__file__).parents[2]
        ours = ["--accel-store", str(store), "--accel-store-key", str(host.key_of(store))]
        checkpoint = forge / "models" / "Stable-diffusion" / "wide1.safetensors"
        flags = ["--always-cpu", *flags, *ours]
        python, extensions = host.python_of(forge), {"accel": here}
        process.WebUI.__init__(self, forge, data, python, checkpoint, flags, extensions)
        self.scripts = self.get("/sdapi/v1/scripts")["txt2img"]
        self.options(live_previews_enable=False, **DEFAULTS)

    def sign_in(self, login: str) -> None:
        """Sign in as a page does where there is a --gradio-auth; the cookie is kept."""
        user, _, password = login.partition(":")
        form = urllib.parse.urlencode({"username": user, "password": password}).encode()
        self._opener.open(f"{self.url}/login", form, timeout=60).close()

    def make(self, route: str = "txt2img", **payload: Any) -> Pictures:
        """Make pictures. Raises Refused."""
        return make(self, host.PAYLOAD | payload, route)

    def load(self) -> dict[str, Any]:
        """Load the model with a first image, and wait until compiled code serves."""
        self.make()
        return self.wait_ready()

    def script(self, beginning: str) -> str | None:
        """Return the title of the script that begins so, in lower case, or None."""
        return next((name for name in self.scripts if name.startswith(beginning.lower())), None)
