"""Small things that an attacker, or a slip of the hand, would find."""

from __future__ import annotations

import os
import threading

import pytest

from lib_accel.compile.backends.fetching import FetchJob
from lib_accel.compile.session import Session
from lib_accel.errors import ArtifactRejected, StoreError
from lib_accel.store import manifest
from lib_accel.store.exchange.remote import Remote
from lib_accel.tools.cli import main
from tests import tiny
from tests.store.kit import key_of, posix, recipe, root_only
from tests.store.servers import fleet_key, send, shared, web_server


@posix
def test_an_export_takes_the_place_of_a_file_alone(store, units, tmp_path):
    """As root, --force put a file where /dev/null was."""
    store.put(recipe("a"), units)
    os.mkfifo(tmp_path / "device")
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    for name in ("device", "link", "folder"):
        with pytest.raises(StoreError, match="is not a real file"):
            store.export([key_of("a")], tmp_path / name, None)
    assert (tmp_path / "device").is_fifo()
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_no_name_is_no_artifact_s_name(store, units, capsys):
    """As of a variable of a shell that was never set; it fitted a single damaged artifact."""
    artifact = store.put(recipe("a"), units)
    (artifact.path / "manifest.json").write_bytes(b"damaged")
    assert main(["store", "delete", "", "--yes", "--store", str(store.root)]) == 1
    assert "'' fits 0 keys" in capsys.readouterr().err
    assert artifact.path.is_dir()


def test_a_user_s_name_in_a_url_may_be_a_token():
    remote = Remote("zzz://to%6ben@host/x?sig=other")
    shown = remote._without_secrets(OSError("no to%6ben, no token, no sig=other"))
    assert shown == "no ***, no ***, no ***"
    assert "user" in Remote("zzz://user:word@h/x")._without_secrets(OSError("user word"))


def test_large_manifests_of_strangers_are_not_kept_in_memory(tmp_path):
    before = manifest._parsed.cache_info().currsize
    for number in range(3):
        (tmp_path / "m").write_bytes(b'{"a": "%d%s"}' % (number, b"x" * 100_000))
        with pytest.raises(ArtifactRejected, match="its own checksum"):
            manifest.read_manifest(tmp_path / "m", key_of("a"))
    assert manifest._parsed.cache_info().currsize == before


def test_a_store_that_hangs_is_not_asked_again_and_again(packaging, tmp_path):
    """Each time would leave threads that wait for it."""
    answer = threading.Event()

    def when_allowed(request, data):
        assert answer.wait(30)
        send(request, data)

    (tmp_path / "there").mkdir()
    for key in tiny.target().keys.values():
        (tmp_path / "there" / f"{key}.zip").write_bytes(b"garbage")
    with web_server(tmp_path / "there", when_allowed) as url:
        session = Session()
        store = shared(tmp_path / "own", url, fleet_key(tmp_path))
        config = tiny.Config(store=store.root, remote=url, fetch_s=0.1, compile=False)
        first = session.fetch(tiny.target(), store, config)
        assert isinstance(first, FetchJob)
        assert first.wait(30)
        session.forget_fetches()
        assert session.fetch(tiny.target(), store, config) is first
        answer.set()
        for thread in first.threads:
            thread.join(30)
        session.forget_fetches()
        again = session.fetch(tiny.target(), store, config)
        assert again is not first
        assert again is not None
        assert again.wait(30)


@root_only
def test_nothing_is_removed_in_the_folder_of_another_user(store, units, tmp_path, capsys):
    """A link of theirs in the place of a lock had root empty any file of that name."""
    artifact = store.put(recipe("a"), units)
    (tmp_path / "mine").write_bytes(b"mine")
    left = ".tmp-0123456789abcdef"
    (store.root / left).mkdir()
    (store.root / ".locks" / f"{left}.lock").symlink_to(tmp_path / "mine")
    os.chown(store.root, 12345, 12345)
    for remove in (store.clear, lambda: store.discard(artifact.key)):
        with pytest.raises(ArtifactRejected, match="belongs to another user"):
            remove()
    assert main(["store", "clear", "--yes", "--store", str(store.root)]) == 1
    assert "Choose a folder of your own" in capsys.readouterr().err
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert artifact.path.is_dir()
