"""Code that came unchecked from elsewhere: checked on this machine before it serves."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib_accel.compile.backends.aoti.arrivals import Arrivals
from lib_accel.errors import ArtifactRejected, NoRoom
from lib_accel.store import Artifact, ArtifactStore
from lib_accel.store.manifest import UNTUNED

from .. import tiny
from .kit import OUTPUT
from .processes import PATIENCE_S
from .test_bad_artifacts import KEY, library

pytestmark = pytest.mark.skipif(os.name != "posix", reason="gcc makes the library that aborts")


def sent(store: Path, folder: Path, change: Callable[[Artifact, Path], None]) -> Path:
    """Return an export of the store in which no unit was checked, as the laboratory makes it."""
    built, elsewhere = ArtifactStore(store), ArtifactStore(folder / "elsewhere")
    for entry in built.list():
        artifact = entry.artifact
        assert artifact is not None
        copies = {}
        for name in artifact.files:
            copies[name] = folder / "copies" / artifact.key / name
            copies[name].parent.mkdir(parents=True, exist_ok=True)
            copies[name].write_bytes(artifact.file(name).read_bytes())
        change(artifact, folder / "copies" / artifact.key)
        origin = f"built for another machine{UNTUNED}"
        made_with = {"cpu": "x86-64-v2"}
        elsewhere.put(artifact.recipe, copies, made_with=made_with, origin=origin)
    elsewhere.export([e.key for e in elsewhere.list()], folder / "sent.zip", b"k" * 32)
    return folder / "sent.zip"


def imported(store: Path, folder: Path, change: Callable[[Artifact, Path], None]) -> ArtifactStore:
    here = ArtifactStore(folder / "here")
    here.import_(sent(store, folder, change), b"k" * 32)
    return here


def waited(store: ArtifactStore, **options: object) -> tiny.Engine:
    """Return an engine for which nothing is compiled, once its job has ended."""
    engine = tiny.engine(store.root, backend="aoti", compile=False, **options)
    engine.prepare()
    assert engine.job is not None, engine.status.reason
    assert not engine.status.artifact, "unchecked code serves nobody"
    assert engine.job.wait(PATIENCE_S)
    engine.take_up()
    return engine


@pytest.mark.parametrize("readonly", [False, True])
def test_unchecked_code_is_checked_before_it_serves(
    tiny_store: Path, tmp_path: Path, readonly: bool
) -> None:
    store = imported(tiny_store, tmp_path, lambda *_: None)
    with contextlib.closing(waited(store, store_readonly=readonly)) as engine:
        assert (engine.status.state, engine.status.reason) == ("ready", None)
        assert engine.counters.compiles == 0
        tiny.check(engine, tiny.inputs())
        tiny.served(engine, tiny.inputs())
    for entry in store.list():
        assert entry.artifact is not None
        assert (entry.artifact.verdict is None) == readonly
        assert entry.artifact.manifest["origin"].endswith("signature checked, untuned")
    if not readonly:
        tiny.check(tiny.ready(store.root), tiny.inputs())  # at once: it is known to be right


def ends_the_process(artifact: Artifact, folder: Path) -> None:
    if artifact.key == KEY:
        code = "__attribute__((constructor)) void f(void) { __builtin_trap(); }"
        command = ["gcc", "-xc", "-", "-shared", "-fPIC", "-o", folder / library(artifact)]
        subprocess.run(command, input=code, text=True, check=True)


def does_not_load(artifact: Artifact, folder: Path) -> None:
    if artifact.key == KEY:
        (folder / library(artifact)).write_bytes(b"no library")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (ends_the_process, "came unchecked, and it ended the process that checked it"),
        (does_not_load, "came unchecked, and it does not run here"),
    ],
)
def test_unchecked_code_that_is_wrong_never_serves(
    tiny_store: Path, tmp_path: Path, change: Callable[[Artifact, Path], None], words: str
) -> None:
    store = imported(tiny_store, tmp_path, change)
    with contextlib.closing(waited(store)) as engine:
        assert words in str(engine.status.reason)
        assert "1 of 5 compiled units are missing and compiling is switched off" in str(
            engine.status.reason
        )
        assert not store.contains(tiny.target().keys[OUTPUT])
        tiny.check(engine, tiny.inputs())
        assert engine.counters.accelerated_calls == 0


def test_inaccurate_code_is_refused_and_not_tried_again(tmp_path: Path) -> None:
    store, checked = ArtifactStore(tmp_path / "store"), set[str]()
    (tmp_path / "code").write_bytes(b"code")
    target = tiny.target()
    put = store.put(target.recipe(OUTPUT), {"code": tmp_path / "code"}, made_with={"cpu": ""})
    arrivals, worker = Arrivals(target, store, checked), SimpleNamespace(artifact=put)
    check = functools.partial(arrivals.finish, worker)  # type: ignore[arg-type]
    assert not check({"stage": "check"})
    with pytest.raises(NoRoom, match="could not be checked: CUDA out of memory"):
        check({"error": "CUDA out of memory"})
    arrivals.place(put)
    wrong = {"compiled": [0.5], "eager": [1e-6]}
    with pytest.raises(ArtifactRejected, match="it is inaccurate here: relative error 5") as caught:
        check({"ok": True, "verdict": wrong, "seconds": 1.0})
    assert caught.value.key == put.key
    with pytest.raises(ArtifactRejected, match="it is inaccurate here"):
        arrivals.place(put)
    assert arrivals.include(put)
    assert not checked
