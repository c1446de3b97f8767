"""A store that machines share: what is published and fetched, and every way in which that fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from lib_accel.errors import AccelError, ArtifactRejected, StoreError
from lib_accel.store import ArtifactStore, PublicKeys, signing
from lib_accel.store.exchange import remote as remotes
from lib_accel.store.exchange.public_keys import write_pair
from lib_accel.store.exchange.remote import Remote
from tests.store.kit import REPO, hidden, key_of, recipe
from tests.store.servers import FAULTS, endless, fleet_key, s3_server, shared, web_server

KEY = key_of("a")


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a shared store."""
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.fixture
def published(folder, units, tmp_path) -> Path:
    """The folder of a shared store, into which a builder has published one artifact."""
    builder = shared(tmp_path / "builder", folder.as_uri(), fleet_key(tmp_path))
    builder.put(recipe("a"), units)
    assert builder.settle(10)
    assert [path.name for path in folder.iterdir()] == [f"{KEY}.zip"]
    return folder


@pytest.fixture
def s3(monkeypatch):
    with s3_server(monkeypatch) as url:
        yield url


def assert_nothing_left(store: ArtifactStore) -> None:
    assert store.list() == []
    assert not store.root.exists() or hidden(store.root) == []


@pytest.mark.parametrize("kind", ["file", "http"])
def test_what_one_machine_compiles_another_fetches(published, tmp_path, kind):
    with web_server(published) as web:
        url = web if kind == "http" else published.as_uri()
        server = shared(tmp_path / "server", url, fleet_key(tmp_path))
        assert server.fetch(KEY)
        assert not server.fetch(key_of("b"))
    artifact = server.get(KEY)
    assert artifact.manifest["origin"] == f"fetched from {url}, signed with the store key"
    assert server.publishes == (kind == "file")


def test_an_s3_server_keeps_it_and_many_writers_leave_a_whole_one(s3, units, tmp_path):
    """Under S3 one of them writes; moto looks and writes in two steps, so more than one may."""
    stores = [shared(tmp_path / str(n), s3, fleet_key(tmp_path)) for n in range(4)]
    for number, store in enumerate(stores):
        (tmp_path / f"code-{number}").write_bytes(bytes([number]) * 100)
        ArtifactStore.put(store, recipe("a"), {"x.so": tmp_path / f"code-{number}"})
    new = []
    threads = [threading.Thread(target=lambda s=s: new.append(s.publish(KEY))) for s in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(new) == 4
    assert True in new
    assert not stores[0].publish(KEY)
    server = shared(tmp_path / "server", s3, fleet_key(tmp_path))
    assert server.fetch(KEY)
    assert server.get(KEY).checksum in {store.get(KEY).checksum for store in stores}
    assert not server.fetch(key_of("b"))
    elsewhere = shared(tmp_path / "0", "s3://no-such-bucket/accel", fleet_key(tmp_path))
    with pytest.raises(StoreError, match=r"Could not write the store s3://no-such-bucket"):
        elsewhere.publish(KEY)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_server_with_faults_changes_nothing(published, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(Remote.read, "__defaults__", (1 << 21,))
    monkeypatch.setattr(remotes, "READ_S", 0.2)
    with web_server(published, fault) as url:
        server = shared(tmp_path / "server", url, fleet_key(tmp_path))
        with pytest.raises((StoreError, ArtifactRejected)):
            server.fetch(KEY)
        assert_nothing_left(server)
    with web_server(published) as url:
        assert shared(tmp_path / "server", url, fleet_key(tmp_path)).fetch(KEY)


def test_a_server_that_is_gone_is_named_without_its_password(tmp_path):
    url = "http://user:pass%77ord@127.0.0.1:9/accel?token=secret"
    server = shared(tmp_path / "server", url, fleet_key(tmp_path))
    with pytest.raises(StoreError, match=r"Could not read the store http://127.0.0.1:9/accel") as e:
        server.fetch(KEY)
    assert not any(word in str(e.value) for word in ("pass", "word", "secret", "user"))


@pytest.mark.parametrize("kind", ["https", "s3"])
@pytest.mark.parametrize("letter", "/?#[")
def test_a_password_that_ends_the_host_s_name_is_not_shown(kind, letter):
    remote = Remote(f"{kind}://user:pass{letter}word@host.invalid/accel")
    with pytest.raises(StoreError, match="%2F for /") as e:
        remote.read("x")
    assert remote.shown == f"{kind}://***@host.invalid/accel"
    assert not any(word in str(e.value) for word in ("user", f"pass{letter}", "word@"))
    assert Remote("https://[::1]:80/a@b").shown == "https://[::1]:80/a@b"


def test_a_login_goes_to_its_own_server_alone(published, tmp_path):
    seen: list[str | None] = []

    def note(request, data):
        seen.append(request.headers.get("Authorization"))
        request.send_response(302)
        request.send_header("Location", f"{other}{request.path}")
        request.send_header("Content-Length", "0")
        request.end_headers()

    def noted(request, data):
        seen.append(request.headers.get("Authorization"))
        request.send_error(404)

    with web_server(published, noted) as other, web_server(published, note) as web:
        url = web.replace("http://", "http://user:p%40ss@")
        assert not shared(tmp_path / "server", url, fleet_key(tmp_path)).fetch(KEY)
    assert seen == ["Basic dXNlcjpwQHNz", None]


def test_another_artifact_under_this_name_is_refused(published, tmp_path):
    (published / f"{KEY}.zip").rename(published / f"{key_of('b')}.zip")
    server = shared(tmp_path / "server", published.as_uri(), fleet_key(tmp_path))
    with pytest.raises(ArtifactRejected, match=f"it holds {KEY[:12]}. Expected the artifact"):
        server.fetch(key_of("b"))
    assert_nothing_left(server)


def test_code_that_nobody_trusted_has_signed_is_refused(published, tmp_path):
    """By the owner of another key, or of none; no flag allows it."""
    other = tmp_path / "other.key"
    signing.write_key(other, bytes(range(2, 34)))
    for key in (other, None):
        server = shared(tmp_path / "server", published.as_uri(), key)
        with pytest.raises(ArtifactRejected, match="it has no signature that a public key"):
            server.fetch(KEY)
        assert_nothing_left(server)
    with zipfile.ZipFile(published / f"{KEY}.zip", "a") as archive:
        archive.writestr("seal.json", "{}")
    server = shared(tmp_path / "server", published.as_uri(), fleet_key(tmp_path))
    assert server.fetch(KEY), "a seal vouches for nothing here, and harms nothing"


def test_a_pair_of_keys_is_enough_and_a_revoked_one_is_not(folder, units, tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    line = write_pair(tmp_path / "builder.key")
    (tmp_path / "keys.txt").write_text(f"{line}\n")
    signer, trusted = PublicKeys(signer=tmp_path / "builder.key"), PublicKeys(tmp_path / "keys.txt")
    builder = shared(tmp_path / "builder", folder.as_uri(), None, public=signer)
    builder.put(recipe("a"), units)
    assert builder.settle(10)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    server = shared(tmp_path / "server", folder.as_uri(), None, public=trusted)
    assert server.fetch(KEY)
    assert server.get(KEY).manifest["origin"].endswith(", signed by builder")
    (tmp_path / "keys.txt").write_text(f"{line}\nrevoked {line.split()[1]}\n")
    with pytest.raises(ArtifactRejected, match="revoked"):
        shared(tmp_path / "new", folder.as_uri(), None, public=trusted).fetch(KEY)


def test_code_that_is_signed_for_nobody_else_is_not_published(folder, units, tmp_path):
    store = shared(tmp_path / "one", folder.as_uri(), None)
    store.put(recipe("a"), units)
    assert store.settle(1)
    assert [*folder.iterdir()] == []
    quiet = shared(tmp_path / "two", folder.as_uri(), fleet_key(tmp_path), publish=False)
    quiet.put(recipe("a"), units)
    assert quiet.settle(1)
    assert [*folder.iterdir()] == []


def test_what_others_cannot_use_is_replaced_and_what_is_good_stays(published, units, tmp_path):
    builder = shared(tmp_path / "builder", published.as_uri(), fleet_key(tmp_path))
    good = (published / f"{KEY}.zip").read_bytes()
    assert not builder.publish(KEY)
    (published / f"{KEY}.zip").write_bytes(b"garbage")
    assert builder.publish(KEY)
    assert (published / f"{KEY}.zip").read_bytes() == good


def test_a_store_that_cannot_be_written_costs_one_line(folder, units, tmp_path, caplog):
    shutil.rmtree(folder)
    store = shared(tmp_path / "one", folder.as_uri(), fleet_key(tmp_path))
    for name in ("a", "b", "c"):
        assert store.put(recipe(name), units)
    assert store.settle(10)
    assert len(caplog.records) == 1
    assert "was not published: Could not write the store file:///" in caplog.text
    assert len(store.list()) == 3


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gs://bucket/accel", r"needs a package that is not installed: .*pip install gcsfs"),
        ("zzz://bucket/accel", r"Could not read the store zzz://bucket/accel"),
        ("simplecache::file:///x", r"Could not read the store"),
        ("file:///no/such/folder", r"Could not read the store file:///no/such/folder"),
    ],
)
def test_a_url_that_leads_nowhere_is_named(tmp_path, url, words):
    with pytest.raises(AccelError, match=words):
        Remote(url).read("x")


def test_what_is_being_published_is_not_lost_at_the_end_of_the_process(folder, units, tmp_path):
    code = (
        "import pathlib, sys; from tests.store.servers import shared; "
        "from tests.store.kit import recipe; folder = pathlib.Path(sys.argv[1]); "
        "store = shared(folder / 'x', (folder / 'there').as_uri(), folder / 'fleet.key'); "
        "store.put(recipe('a'), {'x.so': pathlib.Path(sys.argv[2])})"
    )
    fleet_key(tmp_path)
    command = [sys.executable, "-c", code, str(tmp_path), str(units["mid.pt2"])]
    subprocess.run(command, cwd=REPO, check=True, timeout=60)
    assert [path.name for path in folder.iterdir()] == [f"{KEY}.zip"]


def test_a_machine_without_a_profile_keeps_what_a_trusted_key_signed(
    folder, units, tmp_path, monkeypatch
):
    """As a container with a read-only root; the folder is a volume. The next start finds it."""
    pytest.importorskip("cryptography")
    (tmp_path / "keys.txt").write_text(f"{write_pair(tmp_path / 'builder.key')}\n")
    signer, trusted = PublicKeys(signer=tmp_path / "builder.key"), PublicKeys(tmp_path / "keys.txt")
    builder = shared(tmp_path / "builder", folder.as_uri(), None, public=signer)
    builder.put(recipe("a"), units)
    assert builder.settle(10)
    (tmp_path / "no-folder").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-folder"))
    signing._of_this_process.cache_clear()
    server = shared(tmp_path / "server", folder.as_uri(), None, public=trusted)
    assert server.fetch(KEY)
    signing._of_this_process.cache_clear()  # another process has another
    assert shared(tmp_path / "server", "file:///x", None, public=trusted).get(KEY)
    signing._of_this_process.cache_clear()


def test_without_hard_links_a_folder_works_as_well(published, units, tmp_path, monkeypatch):
    """As on some mounted folders."""

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(remotes.os, "link", refuse)
    builder = shared(tmp_path / "two", published.as_uri(), fleet_key(tmp_path))
    builder.put(recipe("a"), units)
    builder.put(recipe("b"), units)
    assert builder.settle(10)
    names = {f"{KEY}.zip", f"{key_of('b')}.zip"}
    assert {path.name for path in published.iterdir()} == names


def test_what_is_too_long_takes_little_memory(folder):
    """Two dozen threads may each meet it at once."""
    (folder / "x").touch()
    tracemalloc.start()
    with web_server(folder, endless) as url, pytest.raises(StoreError, match="more than"):
        Remote(url).read("x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 << 20
