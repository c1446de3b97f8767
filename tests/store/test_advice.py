"""What is said of a folder that can be no store: each fault has its own sentence, and its cure."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lib_accel.errors import AccelError
from lib_accel.store import ArtifactStore, signing

from .kit import filled, key_of, posix, root_only

SYSTEM = ("/", "/tmp", "/var/tmp", "/dev/shm", "/etc", "/usr", "/proc", "/sys", "/var/lib")
SYSTEM += ("/etc/passwd", "/dev/null", "/proc/x/y", "/sys/x", "/etc/passwd/x", "/dev/x/y")


@pytest.fixture(autouse=True)
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key lies where others can neither write nor, as in tests of other users, be hindered."""
    key = tmp_path / "key"
    signing.write_key(key, bytes(32))
    monkeypatch.setattr(signing, "store_key", lambda _: bytes(32))


def said(folder: Path | str) -> str:
    """Return what is said of the folder: nothing where it can be a store."""
    try:
        ArtifactStore(Path(folder)).check()
    except AccelError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def another_user(folder: Path) -> Iterator[None]:
    """Be a user whose folder this is, and who can reach it."""
    closed = [p for p in folder.parents if not p.stat().st_mode & 0o001]
    modes = {path: path.stat().st_mode for path in closed}
    for path in closed:
        path.chmod(modes[path] | 0o055)
    os.chown(folder, 12345, 12345)
    os.seteuid(12345)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def test_a_usable_folder_is_left_as_it_was(folder: Path) -> None:
    assert said(folder) == said(folder / "deep" / "er") == ""
    assert list(folder.iterdir()) == []


@posix
@pytest.mark.parametrize("place", SYSTEM)
def test_nobody_is_told_to_change_what_the_system_owns(place: str) -> None:
    before = sorted(Path("/").iterdir())
    text = said(place)
    assert "chmod" not in text
    assert "chown" not in text
    assert sorted(Path("/").iterdir()) == before
    if os.path.isdir(place) and os.stat(place).st_mode & 0o1000:  # noqa: PTH112, PTH116
        assert f"Choose a folder of your own in it, for example {os.path.realpath(place)}" in text


@posix
def test_a_shared_folder_is_for_folders_in_it(folder: Path) -> None:
    folder.chmod(0o1777)
    assert said(folder) == (
        f"{folder} is writable by others (mode 1777), so it can hold no compiled code: others "
        "could put code there, which would run as you. Choose a folder of your own in it, for "
        f"example {folder / 'accel'}"
    )
    assert said(folder / "accel") == "", "the advice cures"


@posix
def test_a_folder_of_a_group_is_for_folders_in_it(folder: Path) -> None:
    (folder / "a file of the group").touch()
    folder.chmod(0o775)
    assert said(folder).endswith(f"Choose a folder of your own in it, for example {folder}/accel")
    assert said(folder / "accel") == ""


@posix
def test_in_a_folder_open_to_everyone_nothing_is_safe(folder: Path) -> None:
    folder.chmod(0o777)
    assert said(folder).endswith("Choose a folder elsewhere, for example in your home.")
    (folder / "accel").mkdir()
    assert said(folder / "accel") == (
        f"everyone can put another folder in the place of {folder / 'accel'}, because {folder} is "
        "writable by everyone (mode 0777). Choose a folder elsewhere, for example in your home."
    )


@posix
def test_the_rights_of_a_store_are_changed_back(tmp_path: Path) -> None:
    store = filled(tmp_path, "a")
    store.root.chmod(0o775)
    text = said(store.root)
    assert text.endswith(f"Run: chmod go-w '{store.root}'")
    subprocess.run(text.partition("Run: ")[2], shell=True, check=True)
    assert said(store.root) == "", "the advice cures"
    assert store.get(key_of("a"))


@posix
def test_a_store_that_is_shared_on_purpose_stays_shared(tmp_path: Path) -> None:
    store = filled(tmp_path, "a")
    store.root.chmod(0o1777)
    assert said(store.root).endswith(f"for example {store.root}/accel")


@root_only
@pytest.mark.parametrize("mode", [0o775, 0o777])
def test_a_user_changes_the_rights_of_an_empty_folder_of_his_own(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    with another_user(folder):
        assert said(folder).endswith(f"Run: chmod go-w '{folder}'")
        folder.chmod(mode & ~0o022)
        assert said(folder) == ""


@root_only
def test_a_mark_that_another_user_has_planted_counts_for_nothing(folder: Path) -> None:
    (folder / ".accel-store").touch()
    os.chown(folder / ".accel-store", 12345, -1)
    folder.chmod(0o777)
    assert "chmod" not in said(folder)


@root_only
def test_a_folder_of_another_user_is_left_to_them(folder: Path) -> None:
    os.chown(folder, 12345, -1)
    assert said(folder) == (
        f"{folder} belongs to another user (id 12345, you are 0), so it can hold no compiled code: "
        "others could put code there, which would run as you. Choose a folder of your own."
    )


@root_only
def test_a_folder_that_may_not_be_written(folder: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755)
    with another_user(folder):
        for place in (closed / "x", closed / "x" / "y"):
            assert said(place) == (
                f"You may not write in {closed}. Choose a folder of your own for compiled code."
            )


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_file_is_called_one(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.touch()
    text = said(file / below)
    if below:
        assert text == (
            f"{file} is a file, so {file / below} cannot be made. "
            "Choose a folder of your own for compiled code."
        )
    else:
        assert text == f"{file} is a file, not a folder. Choose a folder for compiled code."


@posix
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")  # noqa: PTH112
def test_where_no_disk_is_no_folder_can_be_made() -> None:
    assert said("/proc/x/y") == (
        "No folder can be made in /proc. Choose a folder of your own for compiled code."
    )


@root_only
def test_a_read_only_disk_is_called_one(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    for place in (mounted, mounted / "x"):
        text = said(place)
        assert "Read-only file system" in text
        assert text.endswith(
            "Choose another folder, or use the store read-only (--accel-store-readonly)."
        )


@posix
@pytest.mark.parametrize("path", [r"Z:\foo", "c:/Users/me", r"\\server\share"])
def test_a_path_of_another_system_is_called_one(path: str) -> None:
    with pytest.raises(AccelError, match="is a path of Windows, and this is another system"):
        ArtifactStore(Path(path))


@posix
@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        ("", lambda path: path.chmod(0o775)),
        ("manifest.json", lambda path: path.chmod(0o666)),
        ("manifest.json", lambda path: (path.unlink(), path.mkdir())),
    ],
)
def test_a_part_of_the_store_is_made_again(
    tmp_path: Path, part: str, spoil: Callable[[Path], object]
) -> None:
    store = filled(tmp_path, "a")
    spoil(store.root / key_of("a") / part)
    (_, problem), *_ = store.verify()
    assert str(problem).endswith("Delete it: what it held is made again.")
