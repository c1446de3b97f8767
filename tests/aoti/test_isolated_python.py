"""Child processes run nobody else's modules, wherever these lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lib_accel
from lib_accel.compile.backends import isolated_python
from lib_accel.compile.backends.isolated_python import (
    PACKAGE_ROOT,
    python_command,
    python_environment,
    trusted_path,
)
from lib_accel.errors import ArtifactRejected
from lib_accel.store import ArtifactStore

from ..store.kit import OTHERS
from .kit import plant, posix, started
from .processes import until

WAYS = ("folder", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "TMPDIR", "sys.path")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def lead_to(shared: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process's children find `shared`, unless they are isolated."""
    if way == "folder":
        monkeypatch.chdir(shared)
    elif way == "sys.path":
        monkeypatch.chdir(shared)
        monkeypatch.setattr(sys, "path", ["", ".", str(shared), *sys.path])
    else:
        monkeypatch.setenv(way, str(shared))


@posix
@pytest.mark.parametrize("way", WAYS)
def test_an_orphaned_worker_runs_no_planted_module(
    way: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It ends because its input does, by a further process that deletes its folder."""
    marker, folder = plant(shared), tmp_path / "job"
    folder.mkdir()
    lead_to(shared, way, monkeypatch)
    command = python_command("lib_accel.compile.backends.aoti.worker", folder)
    done = subprocess.run(
        command,
        env=python_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert not marker.exists(), marker.read_text()
    assert done.returncode == -9, done.stderr
    until("its folder to go", lambda: not folder.exists(), 10)


@posix
@pytest.mark.parametrize(("way", "ran"), [("folder", "psutil; "), ("PYTHONPATH", "encodings/")])
def test_python_as_usual_runs_planted_modules(
    way: str, ran: str, shared: Path, monkeypatch: pytest.MonkeyPatch
):
    """So the test above would notice it."""
    marker = plant(shared)
    lead_to(shared, way, monkeypatch)
    subprocess.run([sys.executable, "-c", "import psutil"], capture_output=True, check=False)
    assert ran in marker.read_text()


def test_a_child_finds_the_modules_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """They may lie where the user's launcher says: in a folder that only this process knows."""
    packages = tmp_path / "packages"
    packages.mkdir(mode=0o755)
    (packages / "launched.py").write_text("import sys; print(__name__, sys.argv[1:])")
    monkeypatch.syspath_prepend(str(packages))
    done = subprocess.run(
        python_command("launched", "a", 7), cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout == "__main__ ['a', '7']\n"
    code = "import json, sys, torch, lib_accel; print(json.dumps([torch.__file__, sys.path]))"
    (packages / "found.py").write_text(code)
    done = subprocess.run(
        python_command("found"), env=python_environment(), capture_output=True, check=True
    )
    torch_file, path = json.loads(done.stdout)
    import torch

    assert torch_file == torch.__file__
    assert path == trusted_path()
    assert path[0] == str(Path(lib_accel.__file__).parents[1]) == str(PACKAGE_ROOT)


@posix
def test_folders_that_everybody_can_write_into_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, mode in (("closed", 0o755), ("group", 0o775), ("open", 0o777), ("sticky", 0o1777)):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name).chmod(mode)
    names = ("closed", "closed/below", "group", "open", "open/below", "sticky", "sticky/below")
    entries = [str(tmp_path / name) for name in (*names, "missing.zip")]
    monkeypatch.setattr(sys, "path", ["", "relative", *entries, sys.prefix])
    kept = [Path(e).relative_to(tmp_path).as_posix() for e in trusted_path()[1:-1]]
    assert kept == ["closed", "closed/below", "group", "sticky/below"]
    assert trusted_path()[-1] == sys.prefix


@posix
def test_a_python_that_everybody_can_change_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on Windows' drives in WSL, and after `chmod -R 777`: there is nothing left to protect."""
    packages = tmp_path / "lib" / "site-packages"
    (packages / "torch").mkdir(parents=True)
    for folder in (tmp_path, packages):
        folder.chmod(0o777)
    monkeypatch.setattr(sys, "path", [str(packages)])
    assert str(packages) not in trusted_path()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "prefix", str(tmp_path))
        assert str(packages) in trusted_path()
    spec = isolated_python.importlib.util.spec_from_file_location(
        "torch", packages / "torch" / "__init__.py"
    )
    monkeypatch.setattr(isolated_python.importlib.util, "find_spec", lambda name: spec)
    assert str(packages) in trusted_path()


def test_variables_that_name_places_of_modules_are_taken_away(monkeypatch: pytest.MonkeyPatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONPYCACHEPREFIX", "TORCH_CUSTOM_PYTHONPATH"):
        monkeypatch.setenv(name, "/tmp")
    monkeypatch.setenv("PYTHONUTF8", "1")
    environment = python_environment()
    assert {name for name in environment if name.startswith("PYTHON")} == {
        "PYTHONUTF8",
        "PYTHONSAFEPATH",
    }
    assert environment["TORCH_CUSTOM_PYTHONPATH"].split(os.pathsep) == trusted_path()


@posix
@pytest.mark.parametrize("others", OTHERS)
def test_nothing_is_compiled_where_others_can_replace_the_folder(
    temp: Path, store: ArtifactStore, others: str
):
    OTHERS[others](temp)
    with pytest.raises(ArtifactRejected, match="exchange"):
        started(store).result()
    assert list(temp.iterdir()) == []
    temp.chmod(0o1777)


_WHO = """
import getpass, os, pwd, sys
from lib_accel.compile.backends import isolated_python
os.setuid(54321)
os.environ.update(isolated_python.naming_variables())
print(getpass.getuser())
"""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(("named", "user"), [({}, "nobody"), ({"USER": "me"}, "me")])
def test_a_user_without_a_name_is_given_one(named: dict[str, str], user: str):
    """As in many containers. torch 2.6 to 2.12 ask for the name as they import their compiler."""
    environment = {"PYTHONPATH": str(PACKAGE_ROOT), "PYTHONDONTWRITEBYTECODE": "1", **named}
    command = [sys.executable, "-c", _WHO]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (user, "")
