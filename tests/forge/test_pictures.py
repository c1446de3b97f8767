"""Every way of making pictures: the same off and on, and served by compiled code."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_accel.tools.webui.client import Refused

from ..webui.host import Comparison
from ..webui.pictures import MIN_DB
from .cases import CASES, Case
from .conftest import rows
from .server import DEFAULTS, Server

LOGIN = "me:secret"


def _served(server: Server, name: str, c: Comparison) -> None:
    rows.append(f"{name:32} {c.line}")
    assert c.decibels >= MIN_DB, rows[-1]
    assert (c.calls > 0, c.host_calls, c.compiles, c.on.served) == (True, 0, 0, True), rows[-1]
    assert not c.off.served


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_off_against_on(server: Server, forge: Path, case: Case) -> None:
    payload = dict(case.payload)
    if case.script:
        beginning, args = case.script
        title = server.script(beginning)
        if title is None:
            pytest.skip(f"{forge.name} has no {beginning}")
        if beginning == "controlnet":
            model = server.get("/controlnet/model_list")["model_list"][1]
            args = [{**args[0], "model": model}]
        payload["alwayson_scripts"] = {title: {"args": args}}
    server.options(**DEFAULTS | case.settings)
    try:
        c = server.compare(case.route, **payload)
    finally:
        server.options(**DEFAULTS)
    _served(server, f"{forge.name}: {case.name}", c)
    if case.led:
        assert case.led in c.reason
        assert c.reason.endswith("compiled layer by layer")
    else:
        assert c.status["reason"] is None


def test_switching_models_keeps_no_memory(server: Server, forge: Path) -> None:
    sizes = []
    for model in ("wide2", "wide1", "wide2", "wide1", "wide2", "wide1"):
        server.options(sd_model_checkpoint=model)
        picture = server.make()
        assert picture.served
        sizes.append(server.memory())
    rows.append(f"{forge.name}: MB after each switch: {', '.join(f'{s:.0f}' for s in sizes)}")
    assert sizes[-1] - sizes[1] < 300


def test_the_login_and_half_precision(forge: Path, store: Path, tmp_path: Path) -> None:
    """Weights that are stored in float16 are computed in float32, as the host computes them."""
    flags = ["--unet-in-fp16", "--gradio-auth", LOGIN]
    server = Server(forge, tmp_path / "data", store, flags)
    try:
        with pytest.raises(Refused, match="401"):
            server.status()
        server.sign_in(LOGIN)
        assert server.load()["dtype"] == "float32"
        _served(server, f"{forge.name}: stored in half precision", server.compare())
    finally:
        server.stop()


def test_the_page_asks_for_the_status(server: Server) -> None:
    answer = server.post("/run/accel_status", {"data": []})["data"][0]
    assert "data-state='ready'" in answer
