"""The commands with a store that machines share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_accel.store import ArtifactStore, signing
from lib_accel.tools.cli.arguments import parser

from ..store.kit import key_of, recipe
from .commands import Run, failure


@pytest.fixture
def given(tmp_path: Path) -> tuple[object, ...]:
    """Arguments that name a store with one artifact and a key that all machines have."""
    (tmp_path / "there").mkdir()
    (tmp_path / "code").write_bytes(b"code")
    signing.write_key(tmp_path / "fleet.key", bytes(range(32)))
    store = ArtifactStore(tmp_path / "store", key_file=tmp_path / "fleet.key")
    store.put(recipe("a"), {"x.so": tmp_path / "code"})
    return "--store", store.root, "--store-key", tmp_path / "fleet.key"


def test_what_a_folder_holds_is_published(run: Run, given: tuple[object, ...], tmp_path: Path):
    url = (tmp_path / "there").as_uri()
    status, out, _ = run("store", "export", "all", "--to", url, *given)
    assert (status, out) == (0, f"1 of 1 units written to {url}, the others were there\n")
    assert [p.name for p in (tmp_path / "there").iterdir()] == [f"{key_of('a')}.zip"]
    again = json.loads(run("store", "export", "all", "--to", url, *given, "--json")[1])
    assert again == {"store": url, "keys": [key_of("a")], "written": 0}


def test_what_others_could_not_check_is_not_published(
    run: Run, given: tuple[object, ...], tmp_path: Path
):
    url, own = (tmp_path / "there").as_uri(), ArtifactStore(tmp_path / "own")
    own.put(recipe("a"), {"x.so": tmp_path / "code"})
    said = failure(run("store", "export", "all", "--to", url, "--store", own.root))
    assert "others take only code that is signed for them; give --signing-key FILE" in said
    web = ("store", "export", "all", "--to", "https://h/accel", *given)
    assert "nothing can be written by HTTP" in failure(run(*web))
    seal = ("store", "export", "all", "--to", url, *given, "--key", tmp_path / "x")
    assert "--key seals a file" in failure(run(*seal))
    prebuild = ("prebuild", "--family", "sd1", "--store", url)
    assert "others take only code that is signed" in failure(run(*prebuild))
    assert [*(tmp_path / "there").iterdir()] == []


def test_a_url_leaves_the_folder_as_it_is_without(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCEL_STORE", "/a")
    for words, folder, url in (
        ([], "/a", ""),
        (["--store", "s3://b/c"], "/a", "s3://b/c"),
        (["--store", "/d"], "/d", ""),
    ):
        args = parser().parse_args(["store", "list", *words])
        assert (args.store, args.remote) == (Path(folder), url)
