"""The tab, the status line and the HTTP routes, without a browser."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lib_accel.store import ArtifactStore, groups

from .conftest import Start
from .host import Host, in_place


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Host]:
    """Without compiled code, and without a compiler."""
    with in_place():
        host = Host("--accel-store", str(tmp_path), "--accel-no-compile")
        yield host
        host.close()


def _basic(login: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


@pytest.mark.parametrize(
    ("headers", "pairs", "login", "both"),
    [
        ({}, 401, 401, 401),
        (_basic("me:secret"), 200, 401, 200),
        (_basic("you:other:word"), 200, 401, 200),
        (_basic("me:wrong"), 401, 401, 401),
        (_basic("me:"), 401, 401, 401),
        (_basic("nobody:secret"), 401, 401, 401),
        (_basic("mé:secrét"), 401, 401, 401),
        ({"Authorization": "Bearer x"}, 401, 401, 401),
        ({"Cookie": "access-token=good"}, 401, 200, 200),
        ({"Cookie": "access-token-unsecure=good"}, 401, 200, 200),
        ({"Cookie": "access-token=bad"}, 401, 401, 401),
        ({"Cookie": "access-token="}, 401, 401, 401),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "status"), ("POST", "prebuild"), ("DELETE", "artifacts/0")]
)
def test_a_request_without_credentials_is_refused(
    start: Start, method: str, path: str, headers: dict[str, str], pairs: int, login: int, both: int
) -> None:
    """Under `--api-auth`, gradio's login, both or none. The 401 comes before anything is done."""
    host = start("--accel-disable")
    own = host.app.ask(method, f"/accel/v1/{path}")[0]
    flags: Any = host.module("modules.shared").cmd_opts
    for api_auth, auth, expected in (
        ("me:secret,you:other:word", None, pairs),
        (None, object(), login),
        ("me:secret,you:other:word", object(), both),
    ):
        flags.api_auth, host.app.auth, host.app.tokens = api_auth, auth, {"good": "me"}
        assert host.app.ask(method, f"/accel/v1/{path}", headers)[0] == (
            own if expected == 200 else expected
        )
    assert own in (200, 409)


def test_prebuild_answers_at_once_and_delete_removes_the_artifact(
    start: Start, own_store: Path
) -> None:
    host = start("--accel-store", str(own_store))
    assert host.app.ask("POST", "/accel/v1/prebuild")[0] == 409  # no model
    host.load()
    first, status = host.call(), host.status()
    code, answer = host.app.ask("POST", "/accel/v1/prebuild")
    assert (code, answer["state"], answer["artifact"]) == (200, "ready", status["artifact"])
    key = status["artifact"]["key"]
    assert host.app.ask("DELETE", f"/accel/v1/artifacts/{key}") == (200, {"deleted": key})
    assert host.app.ask("DELETE", f"/accel/v1/artifacts/{key}")[0] == 404
    assert not list(own_store.glob("*/manifest.json"))
    assert host.call().equal(first), "what is loaded keeps serving"


def test_a_single_unit_can_be_deleted(start: Start, own_store: Path) -> None:
    host = start("--accel-store", str(own_store))
    host.load()
    store = ArtifactStore(own_store)
    keys = [entry.key for entry in store.list()]
    assert host.app.ask("DELETE", f"/accel/v1/artifacts/{keys[0]}")[0] == 200
    assert [entry.key for entry in store.list()] == keys[1:]
    assert host.app.ask("DELETE", f"/accel/v1/artifacts/{keys[0][:12]}")[0] == 409


def _shown(host: Host, name: str) -> str:
    return next(c.value for c in host.pages.shown if c.elem_id == f"accel_{name}")


def _button(host: Host, name: str) -> Any:
    return next(c for c in host.pages.shown if c.elem_id == f"accel_{name}")


def _press(host: Host, name: str) -> None:
    _button(host, name).press()


def test_the_tab_shows_its_parts_and_answers_its_buttons(start: Start, own_store: Path) -> None:
    host = start("--accel-store", str(own_store))
    assert [tab[1:] for tab in host.tabs] == [("Acceleration", "accel")]
    host.load()
    host.image()
    _press(host, "refresh")
    (group,) = groups(ArtifactStore(own_store).list())
    assert "<span class='accel-plain'>2</span>" in _shown(host, "details")  # UNet calls
    assert group.key in _shown(host, "artifacts")
    assert "5 units, float32, torch" in _shown(host, "artifacts")
    assert "<rect class='accel-by-aoti'" in _shown(host, "plot")
    assert "data-level=" in _shown(host, "findings")
    assert not _button(host, "build").interactive
    assert not _button(host, "cancel").visible
    _press(host, "build")
    assert "nothing to build" in _shown(host, "message")
    next(c for c in host.pages.shown if type(c).__name__ == "Textbox").value = group.key
    _press(host, "delete")
    assert "Deleted" in _shown(host, "message")
    assert group.key not in _shown(host, "artifacts")
    assert _button(host, "build").interactive
    host.opts.set("accel_enable", False)
    _press(host, "build")
    assert "Acceleration is off. Switch it on in Settings" in _shown(host, "message")
    assert "accel-problem" in _shown(host, "message")
    assert "Acceleration is off. Switch it on in Settings" in _shown(host, "plot")
    assert not _button(host, "build").interactive


def _no_such_thing(*_: Any) -> Any:
    raise TypeError("no such thing")


def test_a_bug_in_one_part_of_the_tab_is_shown_in_its_place(
    plain: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page that raises would show an empty error, and no other part."""
    plain.module("lib_accel.host.stored_code").artifacts = _no_such_thing
    _press(plain, "refresh")
    assert "This is a bug: TypeError: no such thing" in _shown(plain, "artifacts")
    assert "data-level=" in _shown(plain, "findings")
    plain.service.build = plain.service.delete = plain.service.status = _no_such_thing
    next(c for c in plain.pages.shown if type(c).__name__ == "Textbox").value = "0" * 64
    for name in ("build", "delete"):
        _press(plain, name)
        assert "This is a bug: TypeError" in _shown(plain, "message")
        assert "data-level=" in _shown(plain, "findings")
    assert "This is a bug: TypeError" in _line(plain)
    assert "in _no_such_thing" in capsys.readouterr().err


@pytest.mark.parametrize("used", [2**63, -(2**63), 1e300, 0])
def test_an_artifact_of_an_odd_date_is_listed(plain: Host, used: float) -> None:
    artifacts: Any = plain.module("lib_accel.host.pages.artifacts")
    group = SimpleNamespace(
        key="0" * 64, bytes=1, last_used=used, name="SD1", made_for="", state=lambda *_: ""
    )
    plain.module("lib_accel.host.stored_code").artifacts = lambda: [group]
    date = "1970-01-01" if used == 0 else "<span class='accel-plain'>?</span>"
    assert date in artifacts.artifacts()


def _line(host: Host) -> str:
    poll = next(c for c in host.pages.shown if getattr(c, "api_name", None) == "accel_status")
    return poll.press()[0]


def test_the_status_line_shows_state_and_reason(host: Host) -> None:
    host.call()
    assert "data-state='ready'" in _line(host)
    assert "aoti" in _line(host)
    host.module("modules.shared").loaded_hypernetworks.append(object())
    host.call()
    assert "data-limited='1'" in _line(host)
    assert "hypernetwork" in _line(host)
    host.opts.set("accel_enable", False)
    assert "data-state='off'" in _line(host)


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        ({}, "Compiling</b>"),
        ({"part": 3, "parts": 16, "fraction": 0.2}, "Compiling 3 of 16</b>"),
        ({"part": 3, "parts": 16, "remaining_s": 119.0}, "Compiling 3 of 16, about 2 minutes left"),
        ({"part": 16, "parts": 16, "remaining_s": 61.0}, "16 of 16, about 1 minute left"),
        ({"remaining_s": 0.4}, "Compiling, about 10 seconds left"),
        ({"fraction": 0.25}, "<progress max='1' value='0.250'"),
        ({"stage": "another process is compiling this"}, ">another process is compiling this<"),
        ({"stage": "waiting for video memory: 9"}, ">waiting for video memory: 9</b>"),
        ({"stage": "compiling ResBlock 64 -> 64"}, "Compiling</b>"),
        ({"stage": "cancelling"}, "Cancelling</b>"),
    ],
)
def test_the_line_counts_parts_and_time(plain: Host, progress: dict[str, Any], shown: str) -> None:
    wanted = {"state": "compiling", "progress": progress, "images_wait": False, "vae": {}}
    plain.service.status = lambda: wanted | {"reason": None}
    assert shown in _line(plain)
    assert "ResBlock" not in _line(plain), "a name for people, not for us"


def test_the_line_shows_what_is_being_made_before_what_waits(plain: Host) -> None:
    waits, made = (
        {"stage": stage, "part": 3, "parts": 7} for stage in ("waiting ...", "compiling")
    )
    for first, second in ((waits, made), (made, waits)):
        rows = ({"progress": each, "reason": None} for each in (first, second))
        vae = dict(zip(("decoder", "encoder"), rows, strict=True))
        for state, own in (("ready", None), ("compiling", waits)):
            status = {"state": state, "backend": "aoti", "reason": None, "progress": own}
            status |= {"vae": vae, "images_wait": False}
            plain.service.status = lambda status=status: status
            assert re.search(r">VAE:</\w+> <\w+[^>]*>Compiling 3 of 7<", _line(plain))
            assert "waiting" not in _line(plain)


def test_the_line_names_the_vae_where_only_its_code_is_missing(plain: Host) -> None:
    for reason, named in (("aoti: no", 1), ("the VAE is not accelerated: no", 0), ("", 0)):
        status = {"state": "ready", "backend": "aoti", "reason": None, "progress": None}
        row = {"progress": None, "reason": reason}
        plain.service.status = lambda row=row, s=status: s | {"vae": {"decoder": row}}
        assert _line(plain).count(">VAE:<") == named


def test_the_line_of_images_that_wait_does_not_say_that_they_are_made(plain: Host) -> None:
    """As after Interrupt: the reason is that of the image before."""
    reason = "compiling; images are made without acceleration until then"
    status = {"state": "compiling", "backend": "aoti", "reason": reason, "progress": None}
    plain.service.status = lambda: status | {"vae": {}, "images_wait": True}
    assert "images wait for it" in _line(plain)
    assert "images are made" not in _line(plain)


def test_the_line_says_why_a_better_backend_is_not_compiled_for(plain: Host) -> None:
    status = {"state": "compiling", "backend": "jit", "reason": "aoti: no", "progress": None}
    plain.service.status = lambda: status | {"vae": {}, "images_wait": False}
    assert ">aoti: no<" in _line(plain)


def test_the_line_names_the_backend_once(plain: Host) -> None:
    status = {"state": "ready", "backend": "aoti", "reason": "aoti: no; jit: no", "progress": None}
    plain.service.status = lambda: status | {"vae": {}}
    assert ">no; jit: no<" in _line(plain)


def test_a_folder_that_cannot_hold_code_is_named_in_its_table(start: Start, tmp_path: Path) -> None:
    store = tmp_path / "others write"
    store.mkdir()
    store.chmod(0o777)
    host = start("--accel-store", str(store), "--accel-no-compile")
    _press(host, "refresh")
    assert "None yet" not in _shown(host, "artifacts")
    assert "is writable by others" in _shown(host, "artifacts")


def test_a_long_reason_is_folded_and_a_short_one_is_not(plain: Host) -> None:
    for reason, folded in (("a" * 30, False), ("a long reason, " * 5, True)):
        wanted = {"state": "fallback", "reason": reason, "backend": ""}
        plain.service.status = lambda wanted=wanted: wanted
        assert ("<details" in _line(plain)) is folded
        assert reason in _line(plain)


def test_names_of_other_extensions_are_escaped(host: Host) -> None:
    unets = host.module("modules.sd_unet")
    option = unets.SdUnetOption()
    option.label = "<script>alert(1)</script>"
    unets.current_unet = unets.SdUnet()
    unets.current_unet.option = option
    unets.current_unet.forward = lambda x, *_, **__: x
    host.call()
    assert "&lt;script&gt;" in _line(host)
    assert "<script>" not in _line(host)


def test_the_status_line_is_in_the_tab_and_above_the_picture(host: Host) -> None:
    ids = {c.elem_id for c in host.pages.shown}
    assert {"accel_status_txt2img", "accel_status_tab"} <= ids
