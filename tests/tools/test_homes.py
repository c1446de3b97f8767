"""`~` in what a shell leaves alone, as `--to=~/x.zip`, and what looks like a URL and is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_accel.errors import StoreError
from lib_accel.store import ArtifactStore
from lib_accel.store.exchange.remote import Remote
from lib_accel.tools.cli import main
from lib_accel.tools.cli.arguments import parser

from ..store.kit import posix, recipe

PATHS = (
    "demo --checkpoint=~/x --out=~/x --store=~/x --store-key=~/x --trusted-keys=~/x",
    "demo --lora=~/x:0.5 --signing-key=~/x",
    "bench --family=~/x --out=~/x --stored=~/x",
    "bench image --family=~/x",
    "gpu --carried=~/x --key=~/x --model=~/x --out=~/x",
    "cost --webui=~/x --checkpoint=~/x --python=~/x",
    "prebuild --family=~/x",
    "store key ~/x",
    "store export all --to=~/x --key=~/x",
    "store import ~/x --key=~/x",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize("line", PATHS)
def test_every_option_for_a_path_knows_the_home(home: Path, line: str):
    arguments = vars(parser().parse_args(line.split()))
    found = str({name: value for name, value in arguments.items() if name != "parser"})
    assert "~" not in found
    assert found.count(str(home / "x")) >= line.count("~")


@posix
@pytest.mark.parametrize("line", PATHS)
def test_the_home_of_nobody_is_refused(home: Path, capsys, line: str):
    with pytest.raises(SystemExit):
        parser().parse_args(line.replace("~/", "~no-such-user/").split())
    assert "there is no such home; expected another path" in capsys.readouterr().err


def test_no_folder_called_like_the_home_is_made(home: Path, capsys):
    (home / "code").write_bytes(b"code")
    ArtifactStore(home / "store").put(recipe("a"), {"x.so": home / "code"})
    assert main(["store", "export", "all", "--store=~/store", "--to=~/x.zip", "--key=~/x.key"]) == 0
    assert main(["store", "import", "--store=~/new", "--key=~/x.key", "~/x.zip"]) == 0
    assert {path.name for path in home.iterdir()} >= {"store", "x.zip", "x.key", "new"}
    assert [*Path.cwd().iterdir()] == []


@pytest.mark.parametrize("typed", ["s3:/bucket/accel", "https:/host/accel", "file:/srv/accel"])
def test_a_url_with_one_slash_is_no_folder(home: Path, capsys, typed: str):
    assert main(["store", "list", f"--store={typed}"]) == 1
    assert "is part of a URL and no folder. Expected one like" in capsys.readouterr().err
    with pytest.raises(StoreError, match="part of a URL"):
        ArtifactStore(Path(typed.replace(":/", "://")))
    assert [*Path.cwd().iterdir()] == []


@posix
def test_a_file_url_with_two_slashes_names_no_folder(home: Path):
    """The first word after them is a host: file://srv/accel would be /accel."""
    for typed in ("file://srv/accel", "file://~/accel", "file://./accel"):
        with pytest.raises(
            StoreError, match=r"it names the host .*; a full path has three slashes"
        ):
            Remote(typed).write("x", b"x")
    (home / "there").mkdir()
    assert Remote(f"file://localhost{home}/there").write("x", b"1")
    assert Remote(f"FILE://{home}/there").read("x") == b"1"
    assert not Remote("HTTPS://host/accel").writable
