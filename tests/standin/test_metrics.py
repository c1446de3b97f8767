"""What monitoring reads: metrics for Prometheus, and a state for load balancers."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from ..threads import one_thread  # noqa: F401  used by every test
from .host import Host


def metrics(host: Host) -> dict[str, float]:
    parser = pytest.importorskip("prometheus_client.parser", reason="NOT RUN: not installed")
    code, answer = host.app.ask("GET", "/accel/v1/metrics")
    assert code == 200
    assert answer.media_type.startswith("text/plain")
    found = {}
    for family in parser.text_string_to_metric_families(answer.content.decode()):
        assert family.documentation
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found[f"{sample.name}{sorted(sample.labels.values())}"] = sample.value
    return found


def health(host: Host) -> tuple[int, dict[str, str]]:
    code, answer = host.app.ask("GET", "/accel/v1/health")
    assert code == 200, "by the stand-in, which does not look into a Response"
    return answer.status_code, json.loads(answer.content)


def test_images_and_calls_are_counted_with_the_reason(eager_host: Host):
    before = metrics(eager_host)
    assert before["accel_ready[]"] == 0
    assert before["accel_calls_total[]"] == before["accel_host_calls_total[]"] == 0
    eager_host.image()
    (name,) = [name for name in metrics(eager_host) if name.startswith("accel_images_total")]
    assert name == "accel_images_total['eager', 'none']"
    assert metrics(eager_host)["accel_eager_calls_total[]"] == 2
    eager_host.opts.set("accel_enable", False)
    eager_host.image()
    assert metrics(eager_host)["accel_images_total['', 'none']"] == 1
    eager_host.service.note_images(4, "aoti")
    assert metrics(eager_host)["accel_images_total['', 'aoti']"] == 4


def test_reasons_without_end_are_not_all_kept(eager_host: Host):
    """Each is a time series in Prometheus."""
    eager_host.service.images = Counter({("", f"reason {n}"): n + 1 for n in range(100)})
    found = [n for n in metrics(eager_host) if n.startswith("accel_images_total")]
    assert len(found) == 21
    assert metrics(eager_host)["accel_images_total['', 'other']"] == sum(range(1, 81))


def test_without_the_package_one_sentence_says_what_to_install(eager_host: Host, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    code, answer = eager_host.app.ask("GET", "/accel/v1/metrics")
    assert code == 501
    assert "pip install prometheus-client" in answer["detail"]


def test_the_login_holds_for_both(eager_host: Host):
    eager_host.app.auth, eager_host.app.tokens = {"me": "secret"}, {"good": "me"}
    for path in ("metrics", "health"):
        assert eager_host.app.ask("GET", f"/accel/v1/{path}")[0] == 401
        cookie = {"Cookie": "access-token=good"}
        assert eager_host.app.ask("GET", f"/accel/v1/{path}", cookie)[0] in (200, 501)


def test_a_load_balancer_learns_when_compiled_code_serves(eager_host: Host, monkeypatch):
    assert health(eager_host)[0] == 503
    assert health(eager_host)[1]["state"] == "unaccelerated"
    status = eager_host.service.status()
    for state, reason, expected in (
        ("ready", None, (200, "ready", None)),
        ("compiling", None, (503, "compiling", "compiling ResBlock")),
        ("fallback", "no room", (503, "unaccelerated", "no room")),
        ("off", None, (503, "unaccelerated", "it is switched off")),
    ):
        shown = {**status, "state": state, "reason": reason}
        shown["progress"] = {"stage": "compiling ResBlock"}
        monkeypatch.setattr(eager_host.service, "status", lambda shown=shown: shown)
        code, answer = health(eager_host)
        assert (code, answer["state"], answer["reason"]) == expected
