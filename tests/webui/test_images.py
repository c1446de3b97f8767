"""Every way of making pictures: the same picture off and on, served by compiled code or with the reason shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from .cases import ANY, CASES, Case
from .conftest import rows
from .host import DEFAULTS, Pictures, Server

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
    reason = c.status["reason"]
    rows.append(
        f"{case.name:32} {c.decibels:5.1f} dB  off {c.off.seconds:5.2f} s  on {c.on.seconds:5.2f} s  "
        f"calls {c.calls:3} compiled, {c.host_calls} host  {reason or ''}"
    )
    assert c.decibels >= case.min_db, rows[-1]
    assert c.compiles == 0
    assert c.on.pixels[0].std() > 1
    assert not c.off.served
    off, on = PLAIN.setdefault(case.model, (c.off, c.on))
    if case.differs:
        assert not c.on.same(on)
    elif case.differs is False:  # where the WebUI itself comes back to the bit
        assert c.on.same(on) or not c.off.same(off)
    if case.host:
        assert (c.calls, c.on.served) == (0, False)
        assert case.host in reason
        return
    assert (c.calls > 0, c.host_calls, c.on.served) == (True, 0, True), rows[-1]
    if case.partly != ANY:
        assert (case.partly or "") in (reason or "")
    if case.partly is None:
        assert reason is None
