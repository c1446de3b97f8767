"""Pages of other sites change nothing; our own pages, programs and proxies do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .host import Host, in_place

HERE = {"Host": "127.0.0.1:7860"}
EVIL = {"Origin": "http://evil.example"}

FOREIGN = [
    {**HERE, **EVIL},
    {**HERE, **EVIL, "Sec-Fetch-Site": "cross-site"},
    {**HERE, "Sec-Fetch-Site": "cross-site"},
    {**HERE, "Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-site"},
    {**HERE, "Origin": "http://127.0.0.1:8000"},
    {**HERE, "Origin": "http://127.0.0.1"},
    {**HERE, "Origin": "null"},
    {**HERE, "Origin": ""},
    {**HERE, "Origin": "http://127.0.0.1:7860.evil.example"},
    {**HERE, "Origin": "http://evil.example/127.0.0.1:7860"},
    {**HERE, "Origin": "http://127.0.0.1:7860@evil.example"},
    {**HERE, "Origin": "http://127.0.0.1:78600"},
    {**HERE, "Origin": "http://127.0.0.1:seven"},
    {**HERE, "Origin": "http://[evil"},
    {"Host": "evil.example.org", **EVIL},
    {"Host": "", **EVIL},
    EVIL,
    {**HERE, "Origin": "http://127.0.0.1:7860", "Sec-Fetch-Site": "cross-site"},
    {**HERE, **EVIL, "X-Forwarded-Host": "sd.example, evil.example"},
]
OURS = [
    {},
    HERE,
    {**HERE, "Sec-Fetch-Site": "none"},
    {**HERE, "Origin": "http://127.0.0.1:7860"},
    {**HERE, "Origin": "http://127.0.0.1:7860", "Sec-Fetch-Site": "same-origin"},
    {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
    {"Host": "SD.lan", "Origin": "http://sd.lan"},
    {"Host": "sd.lan:443", "Origin": "https://sd.lan"},
    {"Host": "sd.lan", "Origin": "http://sd.lan:8080"},  # a proxy that leaves the port out
    {**HERE, "Origin": "https://sd.example", "Sec-Fetch-Site": "same-origin"},  # a proxy
    {**HERE, "Origin": "http://sd.example", "X-Forwarded-Host": "sd.example"},
    {**HERE, "Origin": "http://sd.example", "X-Forwarded-Host": "sd.example, proxy.lan"},
]
CHANGING = [("POST", "prebuild"), ("POST", "cancel"), ("DELETE", "artifacts/0")]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with in_place():
        host = Host("--accel-store", str(tmp_path), "--accel-backend", "eager")
        yield host
        host.close()


def _ask(host: Host, method: str, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    return host.app.ask(method, f"/accel/v1/{path}", headers)


@pytest.mark.parametrize("pairs", [None, "me:secret"])
@pytest.mark.parametrize("login", [None, object()])
def test_pages_of_other_sites_start_and_delete_nothing(
    host: Host, pairs: str | None, login: object
) -> None:
    """Whatever login there is, and though the browser adds what logs it in."""
    host.module("modules.shared").cmd_opts.api_auth = pairs
    host.app.auth, host.app.tokens = login, {"good": "me"}
    known = {"Cookie": "access-token=good", "Authorization": "Basic bWU6c2VjcmV0"}
    for method, path in CHANGING:
        expected = _ask(host, method, path, known)
        assert expected[0] != 403
        for headers in FOREIGN:
            code, answer = _ask(host, method, path, {**known, **headers})
            assert code == 403, headers
            assert "page of another site" in answer["detail"], headers
        for headers in OURS:
            assert _ask(host, method, path, {**known, **headers}) == expected, headers
    for headers in FOREIGN:
        assert _ask(host, "GET", "status", {**known, **headers})[0] == 200


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("cors_allow_origins", "http://a.example,http://evil.example"),
        ("cors_allow_origins", "*"),
        ("cors_allow_origins_regex", r"http://e\w+\.example"),
    ],
)
def test_a_site_that_the_command_line_names_may(host: Host, flag: str, value: str) -> None:
    flags = host.module("modules.shared").cmd_opts
    for sent in ({**HERE, **EVIL}, {**HERE, **EVIL, "Sec-Fetch-Site": "cross-site"}):
        setattr(flags, flag, None)
        assert _ask(host, "POST", "prebuild", sent)[0] == 403
        setattr(flags, flag, value)
        assert _ask(host, "POST", "prebuild", sent)[0] == 409  # acceleration is off
    if value != "*":
        others = ({**HERE, "Origin": "http://evil.example.org"}, {**HERE, "Origin": ""})
        assert [_ask(host, "POST", "prebuild", sent)[0] for sent in others] == [403, 403]


def _press(host: Host, name: str, headers: dict[str, str], told: Any = None) -> str:
    button = next(c for c in host.pages.shown if c.elem_id == f"accel_{name}")
    return button.press(headers, told)[0]


@pytest.mark.parametrize("name", ["build", "delete"])
def test_the_tab_refuses_what_other_sites_send(host: Host, name: str) -> None:
    done: list[object] = []
    host.service.build = lambda: done.append("build")
    host.service.delete = done.append
    next(c for c in host.pages.shown if type(c).__name__ == "Textbox").value = "0" * 64
    for headers in FOREIGN:
        assert "page of another site" in _press(host, name, headers), headers
    assert "did not come straight" in _press(host, name, {}, {"headers": HERE}), (
        "the sender's own word"
    )
    assert "did not come straight" in _press(host, name, {}, {"request": {"headers": HERE}})
    assert done == []
    for headers in OURS:
        answer = _press(host, name, headers)
        assert "refused" not in answer, (headers, answer)
    assert len(done) == len(OURS), answer
    assert (
        "accel-line"
        in next(
            c for c in host.pages.shown if getattr(c, "api_name", None) == "accel_status"
        ).press(FOREIGN[0])[0]
    )
