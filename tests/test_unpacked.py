"""Where compiled code is unpacked, in processes of their own that end as the WebUI does: at once, cleaning up nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib_accel.store.store import ArtifactStore

from . import tiny
from .processes import PATIENCE_S
from .test_compile_faults import disk  # noqa: F401  (a fixture)

pytestmark = [
    pytest.mark.usefixtures("packaging"),
    pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL, permissions and mounts"),
]

HEAD = """
import os, sys, threading
from pathlib import Path
from lib_accel.compile.aoti.unit import load_unit
from lib_accel.store.store import ArtifactStore
from tests import tiny
store = Path(sys.argv[1])
"""
SERVE = """
engine, given = tiny.ready(store), tiny.inputs()
for line in sys.stdin:
    tiny.check(engine, given)
    tiny.served(engine, given)
    print("right", flush=True)
    if line == "end at once\\n":
        os._exit(0)
"""
THREADS = """
artifact = ArtifactStore(store).get(tiny.target().key)
start, code = threading.Barrier(8), []
def load(i):
    start.wait()
    code.append(load_unit(artifact.file(artifact.files[i % 4]), tiny.target().device))
threads = [threading.Thread(target=load, args=[i]) for i in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
print(len(code), flush=True)
os._exit(0)
"""
REASON = """
engine = tiny.engine(store, backend="aoti", compile=False)
engine.prepare()
tiny.check(engine, tiny.inputs())
print(engine.status.state, engine.status.reason)
"""
NO_LIBRARY = """
before = dict(os.environ)
try:
    load_unit(Path(sys.argv[2]), tiny.target().device)
except RuntimeError as error:
    print(error)
assert dict(os.environ) == before
os._exit(0)
"""


@pytest.fixture
def temp(tmp_path: Path) -> Path:
    folder = tmp_path / "temp"
    folder.mkdir()
    return folder


@contextlib.contextmanager
def process(root: Path, temp: Path, code: str, *arguments: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temp)),
    }
    command = [sys.executable, "-c", HEAD + code, *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def said(root: Path, temp: Path, code: str, *arguments: Path) -> str:
    with process(root, temp, code, *arguments) as child:
        return child.communicate(timeout=PATIENCE_S)[0]


def computes(child: subprocess.Popen[str], word: str = "again") -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{word}\n")
    child.stdin.flush()
    assert child.stdout.readline() == "right\n"


def folders(temp: Path) -> set[Path]:
    return set(temp.glob("accel-*/.tmp-*"))


def locks(temp: Path) -> set[str]:
    return {path.stem for path in temp.glob("accel-*/.locks/*")}


def test_the_dead_are_swept_and_the_living_stay(root: Path, tiny_store: Path, temp: Path):
    with process(root, temp, SERVE, tiny_store) as living:
        computes(living)
        (mine,) = folders(temp)
        with process(root, temp, SERVE, tiny_store) as killed:
            computes(killed)
            killed.kill()
        with process(root, temp, SERVE, tiny_store) as ended:
            computes(ended, "end at once")  # it has swept the killed one's
            assert ended.wait(PATIENCE_S) == 0
        (left,) = folders(temp) - {mine}
        assert all(len([*folder.rglob("*.so")]) == 4 for folder in (mine, left)), (
            "they would have left nothing anyway"
        )
        with process(root, temp, SERVE, tiny_store) as last:
            computes(last)
            assert left not in folders(temp)
            assert mine in folders(temp)
            computes(last)
            last.communicate(timeout=PATIENCE_S)
        assert (folders(temp), locks(temp)) == ({mine}, {mine.name}), (
            "a process that ends in peace takes its own with it"
        )
        computes(living)
    said(root, temp, THREADS, tiny_store)
    assert mine not in folders(temp)
    assert [path.name for path in temp.iterdir()] == [mine.parent.name], (
        "torch's own folders would stay for good"
    )


def test_nobody_else_can_write_it(root: Path, tiny_store: Path, temp: Path):
    old = os.umask(0)
    try:
        said(root, temp, THREADS, tiny_store)
    finally:
        os.umask(old)
    (folder,) = folders(temp)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]
    assert {path.stat().st_uid for path in (folder, folder.parent)} == {os.geteuid()}


def test_threads_share_one_folder(root: Path, tiny_store: Path, temp: Path):
    assert said(root, temp, THREADS, tiny_store) == "8\n"
    (folder,) = folders(temp)
    assert len([*folder.rglob("*.so")]) == 8


def test_others_could_write_there(root: Path, own_store: Path, temp: Path):
    """A folder of that name that is open to others is not used; the artifact is not to blame and stays."""
    planted = temp / f"accel-{os.geteuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    answer = said(root, temp, REASON, own_store)
    assert answer.startswith("fallback aoti: ")
    assert f"{planted} is writable by others (mode 0777)" in answer
    assert "TMPDIR" in answer
    assert ArtifactStore(own_store).contains(tiny.target().key)
    assert [*planted.iterdir()] == []


def test_no_room_to_unpack(root: Path, own_store: Path, disk: Path):  # noqa: F811
    """The artifact is not to blame and stays."""
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 500_000))
    answer = said(root, disk, REASON, own_store)
    assert answer.startswith("fallback aoti: Could not unpack ")
    assert "No space left on device" in answer
    assert ArtifactStore(own_store).contains(tiny.target().key)
    assert folders(disk) == set()


def test_temporary_files_that_were_cleaned(root: Path, own_store: Path, temp: Path):
    """A server runs for weeks; what cleans temporary files takes what was unpacked for old."""
    cleaned = f"import shutil; shutil.rmtree({str(temp)!r}); os.mkdir({str(temp)!r})"
    again = f"tiny.ready(store); {cleaned}; from lib_accel.compile.aoti import job; job._loaded.clear()\n{REASON}"
    assert said(root, temp, again, own_store) == "ready None\n"


def test_a_package_that_does_not_load_leaves_nothing_elsewhere(
    root: Path, tiny_store: Path, temp: Path, tmp_path: Path
):
    artifact = ArtifactStore(tiny_store).get(tiny.target().key)
    assert artifact is not None
    broken = tmp_path / "broken.pt2"
    with (
        zipfile.ZipFile(artifact.file(artifact.files[0])) as old,
        zipfile.ZipFile(broken, "w") as new,
    ):
        for entry in old.infolist():
            new.writestr(
                entry.filename, b"no library" if entry.filename.endswith(".so") else old.read(entry)
            )
    assert "wrapper.so" in said(root, temp, NO_LIBRARY, tiny_store, broken)
    (folder,) = folders(temp)
    assert [path.name for path in temp.iterdir()] == [folder.parent.name]
