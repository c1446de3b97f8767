"""C++ compilers that crash, hang or compile something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lib_accel.errors import CompileFailed
from lib_accel.store import ArtifactStore

from .. import tiny
from .kit import OUTPUT, assert_nothing_left, posix, stand_in, started
from .processes import until

pytestmark = [pytest.mark.slow, posix]

CRASHES = {
    "always": ("exit 1", "No working C++ compiler found"),
    "when it compiles": (
        'case $1 in --version) exec /usr/bin/env g++ "$@";; esac; '
        'echo "the disk is on fire" >&2; exit 1',
        "the disk is on fire",
    ),
}


@pytest.mark.parametrize(("script", "message"), CRASHES.values(), ids=CRASHES)
def test_a_compiler_that_crashes_is_quoted(
    temp: Path,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    message: str,
):
    monkeypatch.setenv("CXX", stand_in(tmp_path, script))
    if torch.__version__ < (2, 7):  # that keeps what the compiler says to itself
        message = "C++ comp"
    words = rf"(?s)Output 64 -> 4 does not compile: .*{re.escape(message)}"
    with pytest.raises(CompileFailed, match=words):
        started(store).result()
    assert_nothing_left(temp)
    assert store.list() == []


def test_a_compiler_that_hangs_is_ended(
    temp: Path, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", stand_in(tmp_path, f"touch {tmp_path}/called; sleep 1000"))
    job = started(store)
    until("the compiler to be called", (tmp_path / "called").exists)
    job.stall_s = 1
    words = r"the compiler hangs: no answer for 1 s at Output 64 -> 4"
    with pytest.raises(CompileFailed, match=words):
        job.result()
    assert_nothing_left(temp)
    assert store.list() == []


def test_code_that_computes_something_else_never_serves(
    temp: Path, all_but_one: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The compiler takes another epsilon in the normalisation: the code runs and is refused.

    For so few units no headers are compiled first.
    """
    wrong = (
        f'echo "$@" >> {tmp_path}/asked; '
        'for f in "$@"; do case $f in *.cpp) sed -i "s/1e-05/1e-02/g" "$f";; esac; done; '
        'exec /usr/bin/env g++ "$@"'
    )
    monkeypatch.setenv("CXX", stand_in(tmp_path, wrong))
    engine = tiny.engine(all_but_one.root, backend="aoti", blocking=True)
    given = tiny.inputs()
    expected = tiny.clean(engine, *given)
    engine.prepare()
    status = engine.status
    assert (status.state, status.backend) == ("fallback", "eager")
    assert "is inaccurate: relative error" in str(status.reason)
    assert "at (B, H, W, L) = (" in str(status.reason)
    assert torch.equal(engine.compute(*given), expected)
    assert_nothing_left(temp)
    assert not all_but_one.contains(tiny.target().keys[OUTPUT])
    asked = (tmp_path / "asked").read_text()
    assert ".cpp" in asked
    assert ".gch" not in asked
