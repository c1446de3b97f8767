"""Code that others sign with a private key: what serves, and everything that is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lib_accel.errors import ArtifactRejected, StoreError
from lib_accel.store import ArtifactStore, PublicKeys, signing
from lib_accel.store.exchange import public_keys
from lib_accel.store.exchange.public_keys import write_pair
from lib_accel.store.manifest import MANIFEST, read_manifest, signed
from lib_accel.tools.cli import main
from tests.store.kit import flip, key_of, posix, recipe, root_only
from tests.store.test_damage import write_manifest

pytest.importorskip("cryptography")


@pytest.fixture
def lines(tmp_path) -> dict[str, str]:
    """The lines that trust the keys `builder.key` and `stranger.key`."""
    return {name: write_pair(tmp_path / f"{name}.key") for name in ("builder", "stranger")}


def trusting(folder: Path, *lines: str) -> PublicKeys:
    """Trust the keys of these lines."""
    (folder / "accel-keys.txt").write_text("# ours\n" + "".join(f"{line}\n" for line in lines))
    return PublicKeys(folder / "accel-keys.txt")


@pytest.fixture
def shared(lines, units, tmp_path) -> Path:
    """A folder that a builder filled, whose store key no server has."""
    signing.write_key(tmp_path / "theirs", bytes(range(1, 33)))
    signer = PublicKeys(signer=tmp_path / "builder.key")
    made = ArtifactStore(tmp_path / "shared", key_file=tmp_path / "theirs", public=signer)
    made.put(recipe("a"), units, {"compiled": [1.0]})
    made.export([key_of("a")], tmp_path / "signed.zip", None)
    return made.root


def test_a_server_runs_what_a_trusted_key_signed_and_has_no_secret(shared, lines, tmp_path):
    server = ArtifactStore(shared, readonly=True, public=trusting(tmp_path, lines["builder"]))
    assert server.get(key_of("a")) is not None
    assert [entry.foreign for entry in server.list()] == [False]
    nobody = ArtifactStore(shared, readonly=True)
    with pytest.raises(ArtifactRejected, match="is not signed with your store key"):
        nobody.get(key_of("a"))


def test_an_unknown_key_and_a_revoked_one_are_refused(shared, lines, tmp_path):
    key, public = key_of("a"), lines["builder"].split()[1]
    for trusted in ([], [lines["stranger"]], [lines["builder"], f"revoked {public}"]):
        server = ArtifactStore(shared, readonly=True, public=trusting(tmp_path, *trusted))
        with pytest.raises(ArtifactRejected, match=r"signed with a key that is not|is revoked in"):
            server.get(key)


def test_a_revocation_holds_for_what_was_taken_before(shared, lines, units, tmp_path):
    """Also where the own store key signed it; a new compilation replaces it."""
    public = trusting(tmp_path, lines["builder"])
    server = ArtifactStore(tmp_path / "own", public=public)
    (taken,) = server.import_(tmp_path / "signed.zip", None)
    assert taken.manifest["origin"] == "imported from signed.zip, signed by builder"
    assert server.get(taken.key) == taken
    for revoked in (lines["builder"].split()[1], taken.checksum):
        trusting(tmp_path, lines["builder"], f"revoked {revoked}")
        with pytest.raises(ArtifactRejected, match=r"must not be used: .* revoked in .*accel-keys"):
            server.get(taken.key)
        assert server.list()[0].foreign
        for allowed in (False, True):
            with pytest.raises(ArtifactRejected, match="revoked"):
                ArtifactStore(tmp_path / "new", public=public).import_(
                    tmp_path / "signed.zip", None, allow_unsigned=allowed
                )
    (tmp_path / "other").write_bytes(b"another")
    made = server.put(recipe("a"), {"x.so": tmp_path / "other"})
    assert server.get(made.key) == made


@pytest.mark.parametrize("field", ["recipe", "files", "verdict", "created", "name", "published"])
def test_the_signature_covers_all_that_is_said_of_the_code(shared, lines, tmp_path, field):
    """Even where the store key, which all servers of a fleet share, is known to the attacker."""
    file = shared / key_of("a") / MANIFEST
    old = read_manifest(file, key_of("a"))
    new = {"recipe": recipe("b"), "verdict": {"compiled": [0.1]}, "created": "2020", "name": "SD2"}
    new["files"] = {**old["files"], "more.so": {"sha256": "0" * 64, "bytes": 1}}
    new["published"] = {**old["published"], "time": "2030-01-01T00:00:00+00:00"}
    write_manifest(file, **{field: new[field]})
    server = ArtifactStore(shared, readonly=True, public=trusting(tmp_path, lines["builder"]))
    with pytest.raises(ArtifactRejected):
        server.get(key_of("a"))
    with pytest.raises(ArtifactRejected, match=r"does not fit|sha256 of its recipe|damaged"):
        server.get(key_of("a"))


def test_another_artifact_under_this_name_and_any_changed_byte_are_refused(shared, lines, tmp_path):
    server = ArtifactStore(shared, readonly=True, public=trusting(tmp_path, lines["builder"]))
    (shared / key_of("a")).rename(shared / key_of("b"))
    with pytest.raises(ArtifactRejected, match="it belongs to another artifact"):
        server.get(key_of("b"))
    (shared / key_of("b")).rename(shared / key_of("a"))
    for path in (shared / key_of("a")).rglob("*.*"):
        for position in range(0, path.stat().st_size, max(path.stat().st_size // 40, 1)):
            flip(path, position)
            with pytest.raises(ArtifactRejected):
                server.get(key_of("a"))
            flip(path, position)
    assert server.get(key_of("a"))


def test_an_archive_is_taken_by_its_signature_alone(shared, lines, units, tmp_path):
    public = trusting(tmp_path, lines["builder"])
    with pytest.raises(ArtifactRejected, match="signed with a key that is not in"):
        ArtifactStore(tmp_path / "x", public=trusting(tmp_path, lines["stranger"])).import_(
            tmp_path / "signed.zip", None
        )
    trusting(tmp_path, lines["builder"])
    plain = ArtifactStore(tmp_path / "plain")
    plain.put(recipe("b"), units)
    plain.export([key_of("b")], tmp_path / "plain.zip", None)
    plain.export([key_of("b")], tmp_path / "sealed.zip", bytes(32))
    server = ArtifactStore(tmp_path / "own", public=public)
    with pytest.raises(ArtifactRejected, match="it has no signature that a public key can check"):
        server.import_(tmp_path / "plain.zip", None)
    assert server.list() == []
    assert server.import_(tmp_path / "sealed.zip", bytes(32)), "as before there were public keys"


def test_code_that_is_there_is_signed_when_it_is_exported(lines, units, tmp_path):
    store = ArtifactStore(tmp_path / "s", public=PublicKeys(signer=tmp_path / "builder.key"))
    ArtifactStore(store.root).put(recipe("a"), units)
    store.export([key_of("a")], tmp_path / "x.zip", None)
    other = ArtifactStore(tmp_path / "o", public=trusting(tmp_path, lines["builder"]))
    (taken,) = other.import_(tmp_path / "x.zip", None)
    assert taken.manifest["published"]["origin"] == "built here"
    assert "published" not in store.get(key_of("a")).manifest, "the store is left as it is"


@posix
def test_files_of_keys_that_others_can_write_or_read_are_refused(shared, lines, units, tmp_path):
    public = trusting(tmp_path, lines["builder"])
    for mode in (0o664, 0o646):
        public.trusted.chmod(mode)
        with pytest.raises(StoreError, match=r"Others can write the file of trusted keys.*go-w"):
            ArtifactStore(shared, readonly=True, public=public).get(key_of("a"))
    (tmp_path / "builder.key").chmod(0o640)
    store = ArtifactStore(tmp_path / "s", public=PublicKeys(signer=tmp_path / "builder.key"))
    with pytest.raises(StoreError, match="is open to others"):
        store.put(recipe("a"), units)
    with pytest.raises(StoreError, match="is open to others"):
        store.check()
    assert store.list() == []


@root_only
def test_trusted_keys_of_another_user_are_refused(shared, lines, tmp_path):
    import os

    public = trusting(tmp_path, lines["builder"])
    os.chown(public.trusted, 12345, -1)
    with pytest.raises(StoreError, match="belongs to another user"):
        ArtifactStore(shared, readonly=True, public=public).get(key_of("a"))


@pytest.mark.parametrize("line", ["builder", "a b c", "x " + "g" * 64, "x " + "0" * 63])
def test_a_line_that_means_nothing_is_named(shared, lines, tmp_path, line):
    public = trusting(tmp_path, line)
    with pytest.raises(StoreError, match=r"line 2 is neither a name and a key"):
        ArtifactStore(shared, readonly=True, public=public).check()


def test_keys_of_the_wrong_kind_are_named(lines, units, tmp_path):
    signing.write_key(tmp_path / "secret", bytes(32))
    with pytest.raises(StoreError, match="holds no private key for signing"):
        ArtifactStore(tmp_path / "s", public=PublicKeys(signer=tmp_path / "secret")).check()
    with pytest.raises(StoreError, match=r"holds no key\. Expected 64 hex digits"):
        signing.read_key(tmp_path / "builder.key")
    weak = trusting(tmp_path, "weak " + "ff" * 32)  # not a point of the curve
    store = ArtifactStore(tmp_path / "s", public=PublicKeys(signer=tmp_path / "builder.key"))
    manifest = store.put(recipe("a"), units).manifest
    forged = {**manifest, "published": {**manifest["published"], "key": "ff" * 32}}
    name, why = weak.signer_of(signed(forged, bytes(32)))
    assert (name, why) == (None, "its signature does not fit: it was changed since")


def test_without_the_package_one_sentence_says_what_to_install(
    shared, lines, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    server = ArtifactStore(shared, readonly=True, public=trusting(tmp_path, lines["builder"]))
    for look in (server.check, lambda: server.get(key_of("a"))):
        with pytest.raises(StoreError, match=r"not installed\. Run: pip install cryptography"):
            look()
    assert ArtifactStore(tmp_path / "own").list() == [], "asked for only where it is needed"


def test_the_command_line_makes_pairs_signs_and_checks(units, tmp_path, capsys):
    def run(*words: object) -> str:
        assert main(["store", *map(str, words)]) == 0
        return capsys.readouterr().out.strip()

    line = run("key", tmp_path / "b.key", "--pair")
    assert (tmp_path / "b.key.pub").read_text() == f"{line}\n"
    assert main(["store", "key", str(tmp_path / "b.key"), "--pair"]) == 1
    trusting(tmp_path, line)
    store = ArtifactStore(tmp_path / "s")
    store.put(recipe("a"), units)
    archive = tmp_path / "x.zip"
    run(
        "export", "all", "--to", archive, "--signing-key", tmp_path / "b.key", "--store", store.root
    )
    trusted = ("--trusted-keys", tmp_path / "accel-keys.txt", "--store", tmp_path / "o")
    assert "signed by b" in run("import", archive, *trusted)
    assert line.split()[1] in run("list", "--json", *trusted)


def test_the_file_of_trusted_keys_is_read_once_for_a_list(shared, lines, tmp_path, monkeypatch):
    """A store may hold a thousand artifacts."""
    opened, read = [], public_keys.read_guarded
    given = lambda path, **more: opened.append(path) or read(path, **more)  # noqa: E731
    monkeypatch.setattr(public_keys, "read_guarded", given)
    signer = PublicKeys(trusting(tmp_path, lines["builder"]).trusted, tmp_path / "builder.key")
    server = ArtifactStore(shared, key_file=tmp_path / "theirs", public=signer)
    for name in ("b", "c"):
        server.put(recipe(name), {"x.so": tmp_path / "theirs"})
    opened.clear()
    assert [entry.problem for entry in server.list()] == [None] * 3
    assert opened == [signer.trusted]
