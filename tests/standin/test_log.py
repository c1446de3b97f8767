"""What the extension says, as JSON on request."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from .host import Host, in_place


@pytest.fixture
def log_json(tmp_path: Path) -> Iterator[Host]:
    flags = "--accel-store", str(tmp_path), "--accel-backend", "eager", "--accel-log-json"
    with in_place(), closing(Host(*flags)) as host:
        yield host


def test_every_event_is_one_line_of_json(
    log_json: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    log_json.load()
    log_json.module("lib_accel.host.webui").say("two\nlines of 中文 \x1b[31m")
    logging.getLogger("lib_accel.store.store").warning("Discarded artifact %s", "0123")
    out, err = capsys.readouterr()
    loaded, said, logged = map(json.loads, [x for x in out.splitlines() if "event" in x])
    assert "backend eager" in loaded["event"]
    assert said["event"] == "two\nlines of 中文 \x1b[31m"
    assert out.isascii()
    assert "\x1b" not in out
    assert logged == {
        "time": logged["time"],
        "level": "warning",
        "source": "lib_accel.store.store",
        "event": "Discarded artifact 0123",
    }
    offset = datetime.fromisoformat(logged["time"]).utcoffset()
    assert offset is not None
    assert not offset
    assert "Discarded" not in err, "once"


def test_reloading_the_pages_prints_nothing_twice_and_the_end_gives_the_log_back(
    log_json: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    log_json.reload_ui()
    capsys.readouterr()
    logging.getLogger("lib_accel.store.store").warning("once")
    assert capsys.readouterr().out.count("once") == 1
    log_json.close()
    assert logging.getLogger("lib_accel").propagate
    logging.getLogger("lib_accel.store.store").warning("not here")
    assert capsys.readouterr().out == ""
