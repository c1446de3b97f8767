"""Inside the extensions of a WebUI it matters which Python runs a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from lib_accel.tools.cli import webui_python

OWN = "Scripts/python.exe" if os.name == "nt" else "bin/python"


@pytest.fixture
def extension(tmp_path: Path, root: Path) -> Path:
    """This project as an extension of a WebUI that has a `venv` without packages."""
    webui = tmp_path / "a webui"
    (webui / "extensions").mkdir(parents=True)
    (webui / "launch.py").touch()
    venv.create(webui / "venv", symlinks=os.name != "nt", with_pip=False)
    extension = webui / "extensions" / "accel"
    try:
        extension.symlink_to(root, target_is_directory=True)
    except OSError:
        pytest.skip("not everybody may make links here")
    return extension


def called(python: object, extension: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program of the extension by its path, from another folder."""
    command = [str(python), str(extension / "lib_accel"), *arguments]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=300)


def test_doctor_says_that_another_python_runs_and_which_one_is_right(extension: Path) -> None:
    webui, python = extension.parent.parent, extension.parent.parent / "venv" / OWN
    done = called(sys.executable, extension, "doctor", "--device", "cpu")
    first, advice = done.stdout.splitlines()[:2]
    assert first == f"note     looking at {sys.executable}, not the Python of the WebUI in {webui}"
    command = advice.partition("-> run ")[2]
    assert str(python)[1:] in command
    if os.name != "nt":  # it is right: the shell takes it as it stands
        again = subprocess.run(command, shell=True, cwd="/", capture_output=True, text=True)
        assert f"{python}, the Python of the WebUI in {webui}" in again.stdout.splitlines()[0]


def test_doctor_runs_without_any_package(extension: Path) -> None:
    python = extension.parent.parent / "venv" / OWN
    done = called(python, extension, "doctor", "--json")
    findings = json.loads(done.stdout)["findings"]
    assert (done.returncode, done.stderr) == (1, "")
    assert [f["level"] for f in findings] == ["ok", "problem"]
    assert findings[1]["what"].startswith("torch is not installed in this Python (3.")
    assert findings[1]["advice"] == "start the WebUI once: it installs what it needs"


def test_prebuild_installs_no_other_python_beside_the_webuis(extension: Path) -> None:
    """It would take minutes and gigabytes, and its code would not serve."""
    webui = extension.parent.parent
    bare = webui / "bare"
    venv.create(bare, symlinks=os.name != "nt", with_pip=False)
    done = called(bare / OWN, extension, "prebuild", "--family", "sd1")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"is not the Python of the WebUI in {webui}" in done.stderr
    assert "lib_accel' prebuild --family sd1" in done.stderr
    assert "[set-up]" not in done.stderr


def test_prebuild_says_so_and_goes_on_where_it_can(extension: Path) -> None:
    done = called(sys.executable, extension, "prebuild", "--family", "sd9")
    assert done.stderr.startswith(f"note: {sys.executable} is not the Python of the WebUI in ")
    assert done.returncode == 2
    assert " nor a checkpoint file\nHelp: " in done.stderr


def test_elsewhere_nothing_is_wrong_with_this_python(tmp_path: Path, root: Path) -> None:
    assert webui_python.other(root) is None
    assert webui_python.finding(root)[0] == "ok"
    accel = tmp_path / "extensions" / "accel"
    assert webui_python.other(accel) is None
    (tmp_path / "extensions").mkdir()
    (tmp_path / "launch.py").touch()
    assert webui_python.other(accel) is None
    level, what, advice = webui_python.finding(accel)
    assert (level, "has no `venv`" in what) == ("note", True)
    assert advice == "run this with the Python that starts the WebUI"
