"""Files that are no export: found by their end, before they take time or memory."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest

from lib_accel.errors import ArtifactRejected, StoreError
from lib_accel.store import ArtifactStore
from lib_accel.store.exchange import archive as export
from lib_accel.tools.cli import main
from tests.store.kit import key_of, posix, recipe
from tests.store.test_export import SECRET, rewrite

MANY = 400_000


@pytest.fixture
def archive(store, units, tmp_path) -> Path:
    store.put(recipe("a"), units)
    store.export([key_of("a")], tmp_path / "signed.zip", SECRET)
    return tmp_path / "signed.zip"


@pytest.fixture
def other(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "other")


def crowd(count: int) -> bytes:
    """Return the directory of an archive with so many empty members."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *[0] * 9, 4, *[0] * 4, *[0] * 2)
    return b"".join(entry + b"%04x" % (n % 65536) for n in range(count))


def end(count: int, directory: int, offset: int) -> bytes:
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, directory, offset, 0)


def end_64(count: int, directory: int, offset: int) -> bytes:
    place = offset + directory
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, directory, offset)
    return record + struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)


def crowds() -> dict[str, bytes]:
    many = crowd(MANY)
    size = len(many)
    return {
        "an honest end": many + end_64(MANY, size, 0) + end(0xFFFF, size, 0),
        "an end that says few": many + end(3, size, 0),
        "two ends that differ": many + end_64(MANY, size, 0) + end(1, 50, size - 50),
        "a second end that is none": many + b"x" + end_64(1, 50, size - 50)[1:] + end(3, size, 0),
        "a comment": many + end(3, size, 0)[:-2] + b"\x05\0words",
    }


@pytest.mark.parametrize("which", crowds())
def test_members_are_counted_before_they_are_read(other, tmp_path, which):
    """An archive of a million members took 0.8 GB; a directory that is read takes its size."""
    (tmp_path / "crowd.zip").write_bytes(crowds()[which])
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactRejected, match=r"files fit|not a whole zip"):
            other.import_(tmp_path / "crowd.zip", None, allow_unsigned=True)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_an_archive_of_the_larger_format_is_taken(store, archive, other, tmp_path, monkeypatch):
    """As `zipfile` writes it from 2 GiB on."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    store.export([key_of("a")], tmp_path / "large.zip", SECRET)
    large = (tmp_path / "large.zip").read_bytes()
    assert b"PK\6\6" in large
    assert [artifact.key for artifact in other.import_(tmp_path / "large.zip", SECRET)]
    at = large.index(b"PK\6\6")
    other.clear()
    for bad in (
        large[:at] + b"PK\6\5" + large[at + 4 :],
        large[:at] + b"x" + large[at:],
        large[at:],
    ):
        (tmp_path / "bad.zip").write_bytes(bad)
        with pytest.raises(ArtifactRejected, match="not a whole zip"):
            other.import_(tmp_path / "bad.zip", SECRET)


def nested(count: int) -> bytes:
    """Return an archive whose members each hold all that follow: it grows when it is read."""
    names = [b"a" * 64 + b"/%d.so" % n for n in range(count)]
    body, entries = b"code", []
    for name in reversed(names):
        sizes = struct.pack("<3L2H", zlib.crc32(body), len(body), len(body), len(name), 0)
        entries.append((name, sizes))
        body = struct.pack("<4s3H2H", b"PK\3\4", 20, 0, 0, 0, 33) + sizes + name + body
    directory, at = b"", 0
    for name, sizes in reversed(entries):
        directory += struct.pack("<4s6H", b"PK\1\2", 20, 20, 0, 0, 0, 33) + sizes
        directory += struct.pack("<3H2L", 0, 0, 0, 0, at) + name
        at += 30 + len(name)
    return body + directory + end(count, len(directory), len(body))


def test_members_in_one_another_are_not_read(other, tmp_path, monkeypatch):
    """450 kB were written out as 209 MB before the signature was missed."""
    (tmp_path / "nested.zip").write_bytes(nested(200))
    monkeypatch.setattr(export, "_extract", lambda *_: pytest.fail("a member was read"))
    with pytest.raises(ArtifactRejected, match="lie in one another"):
        other.import_(tmp_path / "nested.zip", None, allow_unsigned=True)


@pytest.mark.parametrize(
    "change",
    [lambda data: b"x" + data, lambda data: data + b"x", lambda data: data[:-2] + b"\5\0words"],
    ids=["before", "after", "a comment"],
)
def test_nothing_stands_before_or_after_an_export(archive, other, change):
    archive.write_bytes(change(archive.read_bytes()))
    with pytest.raises(ArtifactRejected, match="not a whole zip"):
        other.import_(archive, SECRET)


@pytest.mark.parametrize(
    "change",
    [
        lambda seal: {**seal, "format": True},
        lambda seal: {**seal, "format": 1.0},
        lambda seal: {**seal, "algorithm": "none"},
        lambda seal: {**seal, "more": 1},
        lambda seal: {**seal, "signature": seal["signature"].upper()},
        lambda seal: [seal],
    ],
)
def test_only_the_seal_that_an_export_writes_fits(archive, other, tmp_path, change):
    def spoil(members: dict[str, bytes]) -> None:
        members[export.SEAL] = json.dumps(change(json.loads(members[export.SEAL]))).encode()

    rewrite(archive, tmp_path / "same.zip", lambda members: None)
    assert other.import_(tmp_path / "same.zip", SECRET)
    with pytest.raises(ArtifactRejected, match="its signature does not fit your key"):
        other.import_(rewrite(archive, tmp_path / "bad.zip", spoil), SECRET)


@posix
def test_what_is_no_file_is_named_and_not_waited_for(other, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for source in (tmp_path / "pipe", tmp_path / "folder", Path("/dev/zero"), Path("/dev/stdin")):
        with pytest.raises(StoreError, match=r"is not a real file|Is a directory"):
            other.import_(source, SECRET)


@posix
def test_a_name_for_terminals_is_shown_without_its_escapes(archive, other, capsys):
    named = archive.with_name(os.fsdecode(b"\xff\x1b[31m\nx.zip"))
    archive.rename(named)
    arguments = ["--store", str(other.root), "--allow-unsigned"]
    assert main(["store", "import", str(named), *arguments]) == 0
    assert main(["store", "import", f"{named}x", *arguments]) == 1
    said = capsys.readouterr()
    assert "??[31m?x.zip, no signature checked" in said.out
    assert "\x1b" not in said.out + said.err
    assert "\\x1b[31m" in said.err
    assert other.list()[0].artifact.manifest["origin"].startswith("imported from ??[31m?x.zip")
