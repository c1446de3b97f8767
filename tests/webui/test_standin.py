"""The stand-in of tests/standin behaves like a real WebUI: facts found in both are equal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..network_files import KINDS
from ..standin.host import Host, in_place
from .conftest import HERE, Launch
from .host import DEFAULTS, Server


@pytest.fixture(scope="module")
def real(launch: Launch) -> Server:
    server = launch(others=[HERE / "standin_probe"])
    server.options(**DEFAULTS)
    server.wait_ready()
    return server


@pytest.fixture
def host(tiny_store: Path) -> Iterator[Host]:
    with in_place():
        host = Host("--accel-store", str(tiny_store))
        host.listen()
        host.load()
        yield host
        host.close()


def _real(server: Server, which: str) -> Any:
    answer = server.get(f"/standin-probe/{which}")
    assert "facts" in answer, answer["failed"]
    return answer["facts"]


def _differ(a: Any, b: Any, where: str = "") -> list[str]:
    """Return the places where two JSON values differ; numbers may differ by rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            line
            for k in {**a, **b}
            for line in _differ(a.get(k, "nothing"), b.get(k, "nothing"), f"{where}/{k}")
        ]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            line
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for line in _differ(x, y, f"{where}/{i}")
        ]
    same = (
        abs(a - b) <= 2e-4
        if isinstance(a, float) and isinstance(b, float)
        else (type(a), a) == (type(b), b)
    )
    return [] if same else [f"{where}: {a!r} in the WebUI, {b!r} in the stand-in"]


def _check_same(real: Any, standin: Any) -> None:
    assert real
    assert _differ(real, json.loads(json.dumps(standin))) == []


@pytest.mark.parametrize("which", ["webui", "lora", "pages"])
def test_the_facts_are_the_same(real: Server, host: Host, which: str) -> None:
    _check_same(_real(real, which), host.facts(which))


def test_jobs_call_the_same_things_in_the_same_order(real: Server, host: Host) -> None:
    lora = host.network("lora", {})
    for prompt, networks in (("", ()), (f"<lora:{next(iter(KINDS))}:1>", (lora,)), ("", ())):
        real.make(prompt=f"a cat {prompt}", steps=2, n_iter=2)
        host.image(*networks, steps=2, n_iter=2)
        _check_same(_real(real, "job"), host.facts("job"))


def test_a_difference_in_value_type_or_place_is_seen(host: Host) -> None:
    facts = json.loads(
        json.dumps({which: host.facts(which) for which in ("webui", "lora", "pages")})
    )
    assert _differ(facts, facts) == []
    for a, b in (
        ({"a": [1]}, {"a": [2]}),
        ([1], [True]),
        ({"a": None}, {}),
        ([1, 2], [1]),
        ([1.0], [1.1]),
        ({"a": {}}, {"a": []}),
    ):
        assert _differ(a, b)
