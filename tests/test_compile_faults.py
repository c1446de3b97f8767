"""Compilers that fail, hang, lie, are killed or have no room: for real, in child processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_accel.compile.aoti import worker_process
from lib_accel.compile.aoti.job import CompileJob, load_artifact
from lib_accel.compile.aoti.process_tree import remove
from lib_accel.compile.aoti.worker_process import _environment
from lib_accel.compile.session import Session
from lib_accel.compile.units import units_of
from lib_accel.errors import CompileFailed, NoRoom, StoreError
from lib_accel.store.store import ArtifactStore

from . import tiny
from .processes import PATIENCE_S, compilers, until, using, workers
from .threads import one_thread  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("packaging")

OUTPUT = units_of(tiny.TINY)[-1]  # the unit that compiles fastest
posix = pytest.mark.skipif(os.name != "posix", reason="the stand-in compilers are shell scripts")


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where jobs put their temporary files: empty before and, that is the point, after."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "none", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(
        ["umount", "--lazy", str(folder)], check=True
    )  # a compiler's helper (torch 2.8) may take a moment to end


def stand_in(folder: Path, script: str) -> str:
    path = folder / "g++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def nothing_left(temp: Path, store: ArtifactStore) -> None:
    until("its processes to end", lambda: not using(temp), 10)
    until("its files to go", lambda: not list(temp.iterdir()), 10)
    assert store.list() == []


def compiling(temp: Path) -> None:
    until("the C++ compiler to be at work", lambda: compilers(temp))


# -- what its compilers find


@posix
def test_the_environment_of_a_worker(tmp_path: Path):
    cpu = tiny.target().machine
    assert _environment(tmp_path, replace(cpu, cxx="/opt/clang++"))["CXX"] == "/opt/clang++"
    gpu = _environment(tmp_path, replace(cpu, device_type="cuda", gpu_headers="/triton"))
    assert gpu["CUDA_HOME"] == "/triton"
    assert Path(gpu["CPATH"].split(os.pathsep)[-1], "nv", "target").is_file()
    assert (
        "CUDA_HOME"
        not in _environment(tmp_path, replace(cpu, device_type="cuda", gpu_headers="")).keys()
        - os.environ.keys()
    )


@posix
def test_the_host_branch_of_headers_made_for_both(tmp_path: Path):
    """As Triton's cuda_fp16.h has them: bare statements, in two branches."""
    code = '#include <nv/target>\nint f(int x) { NV_IF_ELSE_TARGET(NV_IS_DEVICE, asm("no such");, int y = x; return y;) }\n'
    (tmp_path / "both.cpp").write_text(code)
    include = Path(worker_process.__file__).with_name("include")
    subprocess.run(
        ["g++", "-c", f"-I{include}", "-o", str(tmp_path / "both.o"), str(tmp_path / "both.cpp")],
        check=True,
    )


# -- killed


def test_compiling_goes_on_for_a_model_that_was_thrown_away(tmp_path: Path):
    """As when base and refiner take turns. The next one of its architecture finds it under way; another architecture waits."""
    first = tiny.engine(tmp_path / "store")
    first.prepare()
    job = first.job
    first.close(keep_compiling=True)
    other, second = (
        tiny.engine(tmp_path / "store", tiny.RELATIVE),
        tiny.engine(tmp_path / "store", unet=tiny.donor(seed=5)),
    )
    with contextlib.closing(other), contextlib.closing(second):
        other.prepare()
        second.prepare()
        assert job is not None
        assert second.job is job
        assert other.job is not None
        waiting = other.job
        until(
            "the other's turn",
            lambda: waiting.progress().stage == "another architecture is compiled first",
        )
        assert job.wait(300)
        assert second.take_up()
        assert (second.status.state, second.counters.compiles) == ("ready", 4), second.status.reason
        assert other.job.wait(300)
        assert other.take_up()
        assert (other.status.state, other.counters.compiles) == ("ready", 1), (
            "three units are the same"
        )


def test_a_job_cancelled_by_another_model_is_begun_again(tmp_path: Path):
    engines = [tiny.engine(tmp_path / "store", unet=tiny.donor(seed=seed)) for seed in (1, 2)]
    for engine in engines:
        engine.prepare()
    jobs = [engine.job for engine in engines]
    assert jobs[0] is not None
    assert jobs[0] is jobs[1]
    engines[0].close()
    assert jobs[0].wait(60)
    assert engines[1].take_up()
    assert engines[1].status.state == "compiling"
    assert engines[1].job is not jobs[0]
    engines[1].close()


def test_a_killed_worker(temp: Path, store: ArtifactStore):
    """Images go on meanwhile and afterwards; the reason names the unit it died at; nothing stays behind."""
    session = Session()
    engine, given = tiny.engine(store.root, backend="aoti", session=session), tiny.inputs()
    expected = tiny.clean(engine, *given)
    with contextlib.closing(engine):
        engine.prepare()
        assert engine.job is not None
        compiling(temp)
        assert torch.equal(engine.compute(*given), expected)
        workers(temp)[0].kill()
        assert engine.job.wait(PATIENCE_S)
        nothing_left(temp, store)
        assert engine.take_up()
        status = engine.status
        assert (status.state, status.backend, status.counters.compiles) == ("fallback", "eager", 0)
        assert "the compiler process ended (exit -9) at " in str(status.reason)
        assert any(
            f" at {name}" in str(status.reason)
            for name in ("ResBlock 64 -> 64", "SpatialTransformer 64 x1")
        )
        assert torch.equal(engine.compute(*given), expected)
        engine.prepare()
        assert engine.job is None, "it does not try again and again"
    another = tiny.engine(store.root, unet=tiny.donor(seed=2), backend="aoti", session=session)
    another.prepare()
    assert another.job is None, "nor for the next model: base and refiner take turns"
    assert another.status.reason == status.reason
    session.forget_failures()
    with contextlib.closing(tiny.engine(store.root, backend="aoti", session=session)) as again:
        again.prepare()
        assert again.job is not None


JOB = """
import json, sys
from pathlib import Path
from lib_accel.compile.aoti.job import CompileJob
from lib_accel.store.store import ArtifactStore
from tests import tiny
from tests.test_compile_faults import OUTPUT

if __name__ == "__main__":
    job = CompileJob(tiny.target([OUTPUT]), ArtifactStore(Path(sys.argv[1])))
    job.start()
    code = job.result()
    print(json.dumps({"compiled": job.compiled, "units": len(code)}))
"""


def start_job(root: Path, store: ArtifactStore, temp: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "TMPDIR": str(temp),
        "TEMP": str(temp),
        "TMP": str(temp),
    }
    command = [sys.executable, "-c", JOB, str(store.root)]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_killed_parent(root: Path, temp: Path, store: ArtifactStore):
    """Nothing stays behind, and modules that somebody planted in the shared temporary folder are never imported."""
    marker = temp.parent / "planted-code-ran"
    planted = [temp / f"{name}.py" for name in ("psutil", "shutil", "signal")]
    for module in planted:
        module.write_text(f"open({str(marker)!r}, 'a').close()\n")
    with start_job(root, store, temp) as parent:
        compiling(temp)
        parent.kill()
    until("its processes to end", lambda: not using(temp), 10)
    until("its files to go", lambda: set(temp.iterdir()) == set(planted), 10)
    assert store.list() == []
    assert not marker.exists()


def test_files_that_are_still_being_written_go_as_well(tmp_path: Path):
    """What a compiler does for a moment after it was killed, or before it was."""
    folder, end = tmp_path / "files", time.monotonic() + 1
    (folder / "cache").mkdir(parents=True)

    def write() -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                (folder / "cache").mkdir(exist_ok=True)
                for number in range(100):
                    (folder / "cache" / str(number)).touch()

    writer = threading.Thread(target=write)
    writer.start()
    (folder / "cache" / "0").touch()
    remove(folder)
    writer.join()
    assert not folder.exists()


def test_two_processes_want_the_same(root: Path, temp: Path, store: ArtifactStore):
    with start_job(root, store, temp) as one, start_job(root, store, temp) as other:
        said = [
            json.loads(process.communicate(timeout=2 * PATIENCE_S)[0]) for process in (one, other)
        ]
    assert sorted(each["compiled"] for each in said) == [0, 1]
    assert [each["units"] for each in said] == [1, 1]
    assert len(store.list()) == 1
    artifact = store.get(tiny.target([OUTPUT]).key)
    assert artifact is not None
    assert load_artifact(artifact, tiny.target([OUTPUT])).keys() == {OUTPUT}


# -- stopped


def test_cancelled(temp: Path, store: ArtifactStore):
    job = CompileJob(tiny.target(), store)
    job.start()
    until("the workers", lambda: len(workers(temp)) == job.workers)
    job.cancel()
    assert job.wait(20)
    with pytest.raises(CompileFailed, match="cancelled"):
        job.result()
    nothing_left(temp, store)


def test_closed_while_compiling(temp: Path, store: ArtifactStore):
    engine, given = tiny.engine(store.root, backend="aoti"), tiny.inputs()
    expected = tiny.clean(engine, *given)
    engine.prepare()
    job = engine.job
    assert job is not None
    until("the workers", lambda: workers(temp))
    engine.close()
    assert engine.job is None
    assert job.wait(20)
    assert not engine.take_up()
    nothing_left(temp, store)
    assert torch.equal(engine.compute(*given), expected)


def test_another_dtype_while_compiling(temp: Path, store: ArtifactStore):
    """What is compiled for weights that are gone is given up, what is needed now is begun."""
    engine, given = tiny.engine(store.root, backend="aoti"), tiny.inputs()
    with contextlib.closing(engine):
        engine.prepare()
        first = engine.job
        assert first is not None
        engine.network.double()
        assert torch.equal(engine.compute(*given), tiny.clean(engine, *given))
        second = engine.job
        assert second is not None
        assert (first.target.dtype, second.target.dtype) == (torch.float32, torch.float64)
        assert first.wait(20)
        assert not engine.take_up()
        assert engine.status.state == "compiling"
    assert second.wait(20)
    nothing_left(temp, store)


# -- a compiler that does not do its work


CRASHES = {
    "always": ("exit 1", "No working C++ compiler found"),
    "when it compiles": (
        'case $1 in --version) exec /usr/bin/env g++ "$@";; esac; echo "the disk is on fire" >&2; exit 1',
        "the disk is on fire",
    ),
}


@posix
@pytest.mark.parametrize(("script", "message"), CRASHES.values(), ids=CRASHES)
def test_a_compiler_that_crashes(
    temp: Path,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    message: str,
):
    monkeypatch.setenv("CXX", stand_in(tmp_path, script))
    job = CompileJob(tiny.target([OUTPUT]), store)
    job.start()
    with pytest.raises(
        CompileFailed, match=rf"(?s)Output 64 -> 4 does not compile: .*{re.escape(message)}"
    ):
        job.result()
    nothing_left(temp, store)


@posix
def test_a_compiler_that_hangs(
    temp: Path, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", stand_in(tmp_path, f"touch {tmp_path}/called; sleep 1000"))
    job = CompileJob(tiny.target([OUTPUT]), store)
    job.start()
    until("the compiler to be called", (tmp_path / "called").exists)
    job.stall_s = 1
    with pytest.raises(
        CompileFailed, match=r"the compiler hangs: no answer for 1 s at Output 64 -> 4"
    ):
        job.result()
    nothing_left(temp, store)


@posix
def test_a_compiler_that_compiles_something_else(
    temp: Path, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another epsilon in the normalisation: the code runs, is checked, and never serves."""
    wrong = 'for f in "$@"; do case $f in *.cpp) sed -i "s/1e-05/1e-02/g" "$f";; esac; done; exec /usr/bin/env g++ "$@"'
    monkeypatch.setenv("CXX", stand_in(tmp_path, wrong))
    engine, given = tiny.engine(store.root, backend="aoti", blocking=True), tiny.inputs()
    expected = tiny.clean(engine, *given)
    engine.prepare()
    status = engine.status
    assert (status.state, status.backend) == ("fallback", "eager")
    assert "is inaccurate: relative error" in str(status.reason)
    assert "at (B, H, W, L) = (" in str(status.reason)
    assert torch.equal(engine.compute(*given), expected)
    nothing_left(temp, store)


# -- no room


def test_no_room_for_temporary_files(
    disk: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    (disk / "filler").write_bytes(bytes(3 * tiny.MIB - 16384))
    job = CompileJob(tiny.target([OUTPUT]), store)
    job.start()
    with pytest.raises(NoRoom, match="No space left on device"):
        job.result()
    until("its processes to end", lambda: not using(disk), 10)
    assert [p.name for p in disk.iterdir()] == ["filler"]
    assert store.list() == []


def test_no_folder_for_temporary_files(
    tmp_path: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    job = CompileJob(tiny.target([OUTPUT]), store)
    job.start()
    with pytest.raises(NoRoom, match="there is no folder for temporary files"):
        job.result()


def test_no_room_in_the_store(disk: Path, tiny_store: Path, temp: Path):
    """Three units could be taken over from the artifact that is there; a second copy does not fit."""
    store, neighbour = (
        ArtifactStore(disk / "store"),
        ArtifactStore(tiny_store).get(tiny.target().key),
    )
    assert neighbour is not None
    store.put(
        neighbour.key,
        neighbour.recipe,
        {name: neighbour.file(name) for name in neighbour.files},
        neighbour.verdict,
    )
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 300_000))
    job = CompileJob(tiny.target(units_of(tiny.TINY)[:3]), store)
    job.start()
    with pytest.raises(StoreError, match="No space left on device"):
        job.result()
    assert (job.compiled, [entry.key for entry in store.list()]) == (0, [neighbour.key])
    assert list(temp.iterdir()) == []
    tiny.ready(store.root)


def test_a_store_on_a_read_only_disk(disk: Path):
    engine, given = tiny.engine(disk / "store", backend="aoti", blocking=True), tiny.inputs()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    engine.prepare()
    assert (engine.status.backend, engine.counters.compiles, engine.job) == ("eager", 0, None)
    assert f"Could not use the store {disk / 'store'}: " in str(engine.status.reason)
    tiny.check(engine, given)
