"""Attacks on the import of archives, made up from a seed. attacks.py says how they are called."""

from __future__ import annotations

import random
import shutil
import zipfile
from pathlib import Path

from lib_accel.errors import ArtifactRejected
from lib_accel.store import MANIFEST, ArtifactStore
from tests.store.kit import filled, hidden, key_of

SECRET = bytes(range(32))


def damaged_archives(folder: Path, count: int, seed: int) -> int:
    """Change bits and numbers of a signed archive, or cut it. It is whole, or nothing is taken."""
    store, dice = filled(folder, "a", "b"), random.Random(seed)
    archive, bad = folder / "signed.zip", folder / "bad.zip"
    store.export([key_of("a"), key_of("b")], archive, SECRET)
    whole = archive.read_bytes()
    good = {a.key: a.manifest["files"] for e in store.list() if (a := e.artifact)}
    start = whole.index(b"PK\1\2")  # the directory, where most harm can be done
    for _ in range(count):
        data = bytearray(whole)
        position = dice.randrange(start if dice.random() < 0.6 else 0, len(data))
        kind = dice.randrange(5)
        if kind == 0:
            del data[position:]
        elif kind == 1:
            data[position:position] = dice.randbytes(dice.randrange(1, 60))
        elif kind == 2:
            words = (b"\xff" * 4, bytes(4), b"PK\5\6", b"PK\6\7")
            data[position : position + 4] = dice.choice(words)
        else:
            data[position] ^= 1 << dice.randrange(8)
        bad.write_bytes(data)
        other = ArtifactStore(folder / "other")
        try:
            taken = other.import_(bad, SECRET)
        except ArtifactRejected:
            assert other.list() == []
        else:
            assert {artifact.key: artifact.manifest["files"] for artifact in taken} == good
        assert hidden(other.root) == []
        other.clear()
    assert {path.name for path in folder.iterdir()} == {*"012", "store", "other", *_ZIPS}
    return count


_ZIPS = ("signed.zip", "bad.zip")
MEMBERS = (
    "../x",
    "/etc/x",
    "..\\x",
    "a/../../x",
    "C:/x",
    "C:x",
    "//h/s/x",
    "a\x00b",
    "\x1b[31m",
    "",
    "con",
    "nul.so",
    "a" * 300,
    "é.so",
    "a/" * 9 + "b",
    "./x",
    "x/",
    MANIFEST.upper(),
    ".x",
)


def odd_members(folder: Path, count: int, seed: int) -> int:
    """Add members with odd names, kinds and modes to an unsigned archive that is accepted."""
    store, dice = filled(folder, "a"), random.Random(seed)
    archive, bad, other = folder / "signed.zip", folder / "bad.zip", ArtifactStore(folder / "other")
    store.export([key_of("a")], archive, None)
    for _ in range(count):
        shutil.copy(archive, bad)
        before = dice.choice(("", f"{key_of('a')}/", f"{key_of('b')}/", f"{key_of('a').upper()}/"))
        info = zipfile.ZipInfo(before + dice.choice(MEMBERS))
        info.external_attr = dice.choice((0, 0o120777, 0o104755, 0o010644, 0o040755)) << 16
        info.compress_type = dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(bad, "a") as writer:
            writer.writestr(info, dice.randbytes(dice.randrange(40)))
        try:
            other.import_(bad, None, allow_unsigned=True)
        except ArtifactRejected:
            pass
        else:
            raise AssertionError(f"{info!r} was taken")
        assert other.list() == []
        assert hidden(other.root) == []
    assert {path.name for path in folder.iterdir()} == {*"012", "store", "other", *_ZIPS}
    return count
