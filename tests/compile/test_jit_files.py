"""Where torch's compiler keeps its files while the `jit` backend uses it."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lib_accel.compile.backends import jit
from lib_accel.store.private_folder import private_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="users and modes")

COMPILE = """
import json, os, sys
import torch
from lib_accel.compile.backends.jit import JitUnit
from lib_accel.compile.units import units_of
from tests import tiny
before = dict(os.environ)
JitUnit(units_of(tiny.TINY)[-1], torch.float32, torch.device("cpu"))
left = {name for name in before.keys() | os.environ if before.get(name) != os.environ.get(name)}
mapped = [line.split()[-1] for line in open("/proc/self/maps") if sys.argv[1] in line]
print(json.dumps([sorted(left), mapped]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="chown")
def test_a_folder_that_another_user_took_is_not_used(root: Path, tmp_path: Path):
    """torch itself would write there and load from there: it has the name of torch's own."""
    home, shared = tmp_path / "home", tmp_path / "shared"
    planted = shared / f"torchinductor_{getpass.getuser()}"
    for folder in (home, shared, planted):
        folder.mkdir()
    shared.chmod(0o1777)
    planted.chmod(0o777)
    os.chown(planted, 12345, 12345)
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(root)}
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(shared))
    environment.pop("XDG_CACHE_HOME", None)
    command = [sys.executable, "-c", COMPILE, str(shared)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    left, mapped = json.loads(done.stdout)
    assert mapped == []
    assert list(shared.rglob("*")) == [planted]
    assert set(left) <= {"_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"}  # torch's own, an address
    cache = home / ".cache" / "sd-webui-accel-jit"
    assert list(cache.rglob("*.so")) != []
    assert oct(cache.stat().st_mode) == "0o40700"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another user's folder for caches, while no folder is remembered."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(jit, "_lasting_folder", jit._lasting_folder.__wrapped__)
    return folder


def test_the_folder_is_private_and_kept_in_the_profile(home: Path):
    folder = jit.cache_folder()
    assert folder == home / "sd-webui-accel-jit"
    folder.chmod(0o755)  # as an older version or the user may have made it
    assert jit.cache_folder() == folder
    assert oct(folder.stat().st_mode) == "0o40700"


def test_folders_above_it_are_closed_whatever_the_umask(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "new" / "cache"))
    before = os.umask(0)
    try:
        assert jit.cache_folder() == home / "new" / "cache" / "sd-webui-accel-jit"
    finally:
        os.umask(before)
    assert {oct((home / path).stat().st_mode) for path in ("new", "new/cache")} == {"0o40755"}


@pytest.mark.parametrize("fault", ["others can write", "parent", "another user", "file", "space"])
def test_where_the_profile_is_not_safe_the_folder_ends_with_the_process(
    fault: str, home: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = home / "sd-webui-accel-jit"
    if fault == "file":
        folder.touch()
    elif fault == "space":
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "John Doe"))
    else:
        folder.mkdir()
    if fault == "others can write":
        folder.chmod(0o777)
    elif fault == "parent":
        home.chmod(0o777)
    elif fault == "another user":
        if os.geteuid() != 0:
            pytest.skip("needs root: chown")
        os.chown(folder, 12345, 12345)
    assert jit.cache_folder() == private_folder() / "jit"


def test_a_folder_that_the_system_has_cleaned_away_is_not_used_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    (home / "sd-webui-accel-jit").touch()
    first = jit.cache_folder()
    monkeypatch.setattr(jit, "private_folder", lambda: home / "another")
    assert jit.cache_folder() == home / "another" / "jit" != first


def test_the_environment_is_as_before_when_the_last_thread_is_done(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    before, ours = dict(os.environ), str(home / "sd-webui-accel-jit")
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with jit.PRIVATE_FILES:
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with jit.PRIVATE_FILES:
        thread.start()
        assert entered.wait(60)
        assert [os.environ[name] for name in names] == [ours, ours + "/triton"]
    assert [os.environ[name] for name in names] == [ours, ours + "/triton"]
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = "torch sets it to what it found"
    leave.set()
    thread.join()
    assert dict(os.environ) == before
