"""Files of keys as people really write them.

Nothing in a file of trusted keys may trust by mistake, and no secret may lie where others read it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_accel.errors import ArtifactRejected, StoreError
from lib_accel.store import ArtifactStore, PublicKeys, signing
from lib_accel.store.exchange.public_keys import _private, write_pair
from lib_accel.store.manifest import UNTUNED
from tests.store.kit import key_of, posix, recipe

pytest.importorskip("cryptography")

KEY, VERDICT = key_of("a"), {"compiled": [1e-7], "eager": [1e-7]}


@pytest.fixture
def builder(tmp_path) -> str:
    """The public key of `builder.key`, which signed `sent.zip`."""
    line = write_pair(tmp_path / "builder.key")
    (tmp_path / "code").write_bytes(b"code")
    signer = PublicKeys(signer=tmp_path / "builder.key")
    signing.write_key(tmp_path / "theirs", bytes(range(1, 33)))
    made = ArtifactStore(tmp_path / "made", key_file=tmp_path / "theirs", public=signer)
    made.put(recipe("a"), {"x.so": tmp_path / "code"}, origin=f"built elsewhere{UNTUNED}")
    made.export([KEY], tmp_path / "sent.zip", None)
    return line.split()[1]


def trusting(folder: Path, text: str | bytes) -> ArtifactStore:
    file = folder / "accel-keys.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ArtifactStore(folder / "own", public=PublicKeys(file))


@pytest.mark.parametrize(
    "revoked",
    ["\ufeffrevoked {}", "Revoked {}", "REVOKED\t{}", "revoked: {}", "revoke {}", "un-revoked {}"],
    ids=ascii,
)
def test_a_line_that_is_meant_to_revoke_trusts_nobody(builder, tmp_path, revoked):
    """An editor under Windows begins a file with a mark that nobody sees."""
    server = trusting(tmp_path, f"{revoked.format(builder)}\n")
    with pytest.raises((StoreError, ArtifactRejected), match=r"line 1 is neither|revoked"):
        server.import_(tmp_path / "sent.zip", None)
    assert server.list() == []


def test_a_mark_at_the_beginning_means_nothing(builder, tmp_path):
    assert trusting(tmp_path, f"\ufeffbuilder {builder}\r\n").import_(tmp_path / "sent.zip", None)


@pytest.mark.parametrize("end", ["\v", "\f", "\x1c", "\x85", "\u2028", "\r"], ids=ascii)
def test_a_comment_ends_where_an_editor_shows_its_end(builder, tmp_path, end):
    server = trusting(tmp_path, f"# made on Monday{end}builder {builder}\n")
    with pytest.raises(ArtifactRejected, match="not in"):
        server.import_(tmp_path / "sent.zip", None)


def test_a_file_that_is_too_long_is_not_read_in_part(builder, tmp_path):
    """What is revoked at its end would serve."""
    long = f"builder {builder}\n" + "#".ljust(1 << 20, "x") + f"\nrevoked {builder}\n"
    with pytest.raises(StoreError, match=r"has more than \d+ bytes"):
        trusting(tmp_path, long).import_(tmp_path / "sent.zip", None)


@pytest.mark.parametrize("name", ["revoked.key", "a#b.key", "a b.key", "#.key", "Revoked.old.key"])
def test_the_line_of_a_new_pair_trusts_it_whatever_its_file_is_called(tmp_path, name):
    line = write_pair(tmp_path / name)
    public = trusting(tmp_path, f"{line}\n")._public
    assert [*public.read(public.trusted)[0]] == [line.split()[-1]]
    assert public.read(public.trusted)[1] == set()


def test_a_machine_that_signs_itself_still_follows_a_revocation(builder, tmp_path):
    """It checks what came unchecked, and notes that with its own key."""
    write_pair(tmp_path / "own.key")
    server = trusting(tmp_path, f"builder {builder}\n")
    keys = tmp_path / "accel-keys.txt"
    server = ArtifactStore(server.root, public=PublicKeys(keys, tmp_path / "own.key"))
    (artifact,) = server.import_(tmp_path / "sent.zip", None)
    server.record(artifact, VERDICT)
    checked = server.get(KEY)
    assert checked is not None
    assert checked.verdict == VERDICT
    keys.write_text(f"revoked {builder}\n")
    with pytest.raises(ArtifactRejected, match="the key that signed it is revoked"):
        server.get(KEY)


@posix
@pytest.mark.parametrize("pair", [False, True])
def test_a_secret_key_that_a_webui_gives_away_is_refused(tmp_path, monkeypatch, pair):
    """As `/file=extensions/accel/fleet.key`; a file with a dot before its name it keeps."""
    make = write_pair if pair else lambda path: signing.write_key(path, signing.generate_key())
    read = _private if pair else signing.read_key
    extension = tmp_path / "webui" / "extensions" / "accel"
    extension.mkdir(parents=True)
    monkeypatch.chdir(extension)
    make(tmp_path / "home.key")
    for name in ("old.key", ".old.key"):
        make(extension / name)
    (tmp_path / "link").symlink_to(extension / "old.key")
    (tmp_path / "webui" / "webui.py").touch()
    for path in map(Path, ("old.key", extension / "old.key", tmp_path / "link")):
        with pytest.raises(StoreError, match="gives files to everybody"):
            read(path)
    for path in ("new.key", "../../new.key"):
        with pytest.raises(StoreError, match="gives files to everybody"):
            make(Path(path))
    for kept in (".old.key", "../../../home.key"):
        read(Path(kept))


def test_a_secret_key_beside_this_extension_is_refused(tmp_path, monkeypatch):
    """Where `--data-dir` has moved the extensions, the folder of the WebUI is another."""
    monkeypatch.setattr(signing, "_EXTENSIONS", tmp_path)
    with pytest.raises(StoreError, match="gives files to everybody"):
        signing.write_key(tmp_path / "new.key", signing.generate_key())
