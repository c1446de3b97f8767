"""The folder that a process has for itself: where it lies, whose it is, and when it goes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lib_accel.errors import ArtifactRejected
from lib_accel.store import private_folder as module

from .kit import OTHERS, REPO, posix, root_only

PRINT = "from lib_accel.store.private_folder import private_folder; print(private_folder())\n"
WAIT = "import sys; sys.stdout.flush(); sys.stdin.read()\n"


@pytest.fixture
def temp(tmp_path: Path) -> Path:
    """A shared temporary folder."""
    folder = tmp_path / "temp"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def start(code: str, temp: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temp))}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPO,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(code: str, temp: Path) -> list[str]:
    """Return what the code prints."""
    with start(code, temp) as process:
        out = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    return out.splitlines()


def leave(temp: Path, old: bool = True) -> Path:
    """Kill a process that has a folder; return the folder, an hour old unless told otherwise."""
    with start(PRINT + WAIT, temp) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        (folder / "unit.so").touch()
        process.kill()
    age(folder, 3600 if old else 0)
    return folder


def age(folder: Path, seconds: float) -> None:
    when = folder.stat().st_mtime - seconds
    os.utime(folder, (when, when))


def test_a_process_has_one_folder_until_it_ends(temp: Path):
    code = "folder = private_folder()\n(folder / 'unit.so').touch()\nprint(private_folder())\n"
    code += "print(oct(folder.stat().st_mode))\n"
    first, second, mode = run(PRINT + code, temp)
    assert first == second
    assert mode == "0o40700" or os.name != "posix"
    assert list(temp.iterdir()) == []


def test_nothing_is_made_before_it_is_asked_for(temp: Path):
    code = "import os, tempfile, lib_accel.store.private_folder\n"
    assert run(code + "print(os.listdir(tempfile.gettempdir()))", temp) == ["[]"]


def test_what_a_killed_process_left_is_removed_by_the_next(temp: Path):
    left = leave(temp)
    assert (left / "unit.so").exists()
    run(PRINT, temp)
    assert list(temp.iterdir()) == []


def test_the_folder_of_a_live_process_stays(temp: Path):
    with start(PRINT + WAIT, temp) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        age(folder, 3600)
        run(PRINT, temp)
        assert list(temp.iterdir()) == [folder]
        process.communicate()
    assert list(temp.iterdir()) == []


def test_a_folder_that_its_owner_is_just_making_stays(temp: Path):
    left = leave(temp, old=False)
    run(PRINT, temp)
    assert left.exists()


@posix
def test_a_forked_child_has_a_folder_of_its_own_and_leaves_its_parents(temp: Path):
    code = PRINT + "import os, sys, time\nsys.stdout.flush()\n"
    code += "if os.fork() == 0:\n    print(private_folder(), flush=True); sys.exit()\n"
    code += "os.wait(); print(private_folder().exists())\n"
    code += (
        "os.utime(private_folder(), (0, 0)); module._remove_leftovers(private_folder().parent)\n"
    )
    code += "print(private_folder().exists())\n"
    head = "from lib_accel.store import private_folder as module\n"
    parents, childs, *exist = run(head + code, temp)
    assert Path(parents).parent == Path(childs).parent == temp
    assert parents != childs
    assert exist == ["True", "True"]
    assert list(temp.iterdir()) == []


def test_what_only_looks_similar_stays(temp: Path, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("keep")
    names = ("accel-private-thesis", "accel-private-abcdefg", "accel-private-ABCDEFGH", "accel-0")
    for name in names:
        (temp / name).mkdir()
        (temp / name / "lock").touch()
        age(temp / name, 3600)
    (temp / "accel-private-abcdefgh").write_text("a file")
    if os.name == "posix":
        (temp / "accel-private-link0000").symlink_to(mine)
    before = set(temp.iterdir())
    run(PRINT, temp)
    assert set(temp.iterdir()) == before
    assert (mine / "thesis.txt").exists()


@root_only
def test_a_folder_of_another_user_stays(temp: Path):
    left = leave(temp)
    os.chown(left, 12345, 12345)
    run(PRINT, temp)
    assert (left / "unit.so").exists()


@posix
@pytest.mark.parametrize("others", [*OTHERS, "by a link"])
def test_a_temporary_folder_where_others_can_replace_it_is_refused(
    temp: Path, monkeypatch: pytest.MonkeyPatch, others: str
):
    if others == "by a link":
        OTHERS["group"](temp)
        (temp / "own").mkdir()
        temp = temp.with_name("link")
        temp.symlink_to("temp/own")
    else:
        OTHERS[others](temp)
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    with pytest.raises(ArtifactRejected, match="exchange"):
        module._folder_of.__wrapped__(os.getpid())


@posix
@pytest.mark.parametrize("planted", ["nothing", "folder", "link"])
def test_where_the_system_has_cleaned_it_away_another_is_made(temp: Path, planted: str):
    code = "import shutil\nfolder = private_folder()\nshutil.rmtree(folder)\n"
    code += {
        "nothing": "",
        "folder": "folder.mkdir()\nfolder.chmod(0o777)\n",
        "link": "folder.symlink_to(folder.parent)\n",
    }[planted]
    code += "print(private_folder().is_dir(), private_folder() == folder)\n"
    assert run(PRINT + code, temp)[1:] == ["True False"]
