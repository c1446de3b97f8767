"""Every way of making pictures: the same off and on.

Compiled code serves it, or the status says why not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .cases import ANY, CASES, Case
from .conftest import rows
from .host import DEFAULTS, Server
from .pictures import Pictures

PLAIN: dict[str, tuple[Pictures, Pictures]] = {}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_off_against_on(server: Server, webui: Path, case: Case) -> None:
    if not (webui / "models" / "Stable-diffusion" / f"{case.model}.safetensors").exists():
        pytest.skip(f"there is no checkpoint {case.model}")
    server.options(**DEFAULTS | case.settings)
    server.use(case.model)
    try:
        c = server.compare(case.route, **case.payload)
    finally:
        server.options(**DEFAULTS)
    rows.append(f"{case.name:32} {c.line}")
    assert c.decibels >= case.min_db, rows[-1]
    assert c.compiles == 0
    assert c.on.pixels[0].std() > 1
    assert not c.off.served
    off, on = PLAIN.setdefault(case.model, (c.off, c.on))
    if case.differs:
        assert not c.on.same(on)
    elif case.differs is False:  # where the WebUI repeats itself to the bit
        assert c.on.same(on) or not c.off.same(off)
    if case.host:
        assert (c.calls, c.on.served) == (0, False)
        assert case.host in c.reason
        return
    assert (c.calls > 0, c.host_calls, c.on.served) == (True, 0, True), rows[-1]
    if case.partly != ANY:
        assert (case.partly or "") in c.reason
    if case.partly is None:
        assert c.status["reason"] is None
