"""Starts the WebUI whose folder ACCEL_WEBUI names; without it every test here is skipped.

ACCEL_WEBUI may name several, separated as in PATH: test_versions.py goes through all of them.
ACCEL_WEBUI_PYTHON names its interpreter, where that is not in `venv` inside or beside the folder.
ACCEL_E2E_STORE names a folder for compiled code that outlives the run; its key lies beside it. The
WebUI needs the checkpoints tinyA and tinyB (SD1); the others of cases.py are optional.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ..network_files import bad_files, with_text, write_all
from ..real_host import show, skip_below
from .host import KINDS_OF_MODEL, Comparison, Server
from .pictures import MIN_DB

HERE = Path(__file__).parent
NO_WEBUI = "NOT RUN, no real WebUI: set ACCEL_WEBUI to a stable-diffusion-webui 1.10.1"
Launch = Callable[..., Server]
rows: list[str] = []


def folders() -> list[Path]:
    """Return the folders that ACCEL_WEBUI names."""
    named = os.environ.get("ACCEL_WEBUI", "").split(os.pathsep)
    return [Path(name).resolve() for name in named if name]


def store_of(folder: Path) -> Path:
    """Return the folder of compiled code of this run, or of several runs."""
    return Path(os.environ.get("ACCEL_E2E_STORE") or folder / "store")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("ACCEL_WEBUI"):
        skip_below(HERE, items, NO_WEBUI)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    show(terminalreporter, "inside the WebUI, off against on", rows)


def served(server: Server, name: str, **payload: Any) -> Comparison:
    """Compare a picture off and on: compiled code must have served all of the second."""
    c = server.compare(**payload)
    rows.append(f"{name:32} {c.line}")
    assert c.decibels >= MIN_DB, rows[-1]
    assert (c.calls > 0, c.host_calls, c.compiles, c.on.served) == (True, 0, 0, True), rows[-1]
    return c


@pytest.fixture(scope="session")
def webui() -> Path:
    return folders()[0]


@pytest.fixture(scope="session")
def folder(webui: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the servers' data, with LoRAs, a VAE and a hypernetwork made for them."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("webui")
    for kind in KINDS_OF_MODEL:
        (folder / kind).mkdir()
    models = webui / "models" / "Stable-diffusion"
    for lora in (webui / "models" / "Lora").glob("*.safetensors"):
        (folder / "lora" / lora.name).symlink_to(lora)
    write_all(folder / "lora", models / "tinyA.safetensors")
    bad_files(folder / "lora", models / "tinyA.safetensors")
    save_file(with_text(models / "tinyA.safetensors"), folder / "lora" / "with-text.safetensors")
    # A and B again with one configuration file: switching loads weights into the same objects
    (folder / "ckpt" / "same.safetensors").symlink_to(models / "tinyA.safetensors")
    (folder / "ckpt" / "same.yaml").symlink_to(models / "tinyA.yaml")
    old = {"_use_new_zipfile_serialization": False}  # the WebUI reads no newer format
    torch.save(
        {"state_dict": load_file(models / "tinyB.safetensors")},
        folder / "ckpt" / "same.ckpt",
        **old,
    )
    whole = load_file(models / "tinyA.safetensors")
    prefix = "first_stage_model."
    vae = {
        k.removeprefix(prefix): (v * 1.02).contiguous()
        for k, v in whole.items()
        if k.startswith(prefix)
    }
    save_file(vae, folder / "vae" / "tinyVAE.safetensors")

    def half() -> dict[str, torch.Tensor]:
        shapes = {
            "linear.0.weight": (64, 768),
            "linear.0.bias": (64,),
            "linear.1.weight": (768, 64),
            "linear.1.bias": (768,),
        }
        return {k: torch.randn(s) * 0.05 for k, s in shapes.items()}

    net = {768: (half(), half()), "name": "tinyHN", "step": 1, "layer_structure": [1, 1 / 12, 1]}
    torch.save(net, folder / "hypernetwork" / "tinyHN.pt", **old)
    return folder


@pytest.fixture(scope="session")
def launch(webui: Path, folder: Path) -> Iterator[Launch]:
    """A function that starts a server; all servers end with the session."""
    store = store_of(folder)
    started: list[Server] = []

    def start(
        *flags: str,
        extension: bool = True,
        login: str | None = None,
        model: str = "tinyA",
        others: Sequence[Path] = (),
        compiled: bool = True,
    ) -> Server:
        """`others`: further extensions, by their folders. Not `compiled`: with an empty store."""
        extensions = {"accel": HERE.parent.parent} if extension else {}
        extensions |= {folder.name: folder for folder in others}
        data = folder / f"data{len(started)}"
        own = store if compiled else data / "store"
        started.append(Server(webui, data, own, model, flags, extensions, login))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def server(launch: Launch) -> Server:
    """The server that most tests share; compiled code serves it."""
    server = launch()
    server.wait_ready()
    return server
