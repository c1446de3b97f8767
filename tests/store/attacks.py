"""Attacks on artifacts and stores, made up from a seed; those on archives are in archives.py.

Each takes an empty folder, how often it tries and a seed, returns how often it tried, and raises
AssertionError (or whatever leaves the store) at what should not happen. `tests/store/
test_attacks.py` tries each a few times.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib_accel.errors import AccelError
from lib_accel.store import MANIFEST, Artifact, ArtifactStore, groups, signing
from lib_accel.store import manifest as manifests
from tests.store.archives import damaged_archives, odd_members
from tests.store.kit import NAMES, child, filled, finish, flip, hidden, key_of

Attack = Callable[[Path, int, int], int]


def assert_refused(store: ArtifactStore, key: str, what: object) -> None:
    """Assert that one artifact is refused, and that it stops nothing else."""
    try:
        found = store.get(key)
    except AccelError:
        found = None
    assert found is None, f"served: {what}"
    assert_calm(store, key)


def assert_calm(store: ArtifactStore, key: str) -> None:
    """Assert that the others are good and that looking at the store ends well."""
    assert {k for k, problem in store.verify() if problem} <= {key}
    assert groups(store.list()) is not None


def flipped_bytes(folder: Path, count: int, seed: int) -> int:
    """Change one bit of the manifest or of a file."""
    store, dice = filled(folder, "a", "b"), random.Random(seed)
    artifact = store.get(key_of("a"))
    assert artifact is not None
    for _ in range(count):
        path = artifact.path / dice.choice((MANIFEST, *NAMES))
        position = dice.randrange(path.stat().st_size)
        flip(path, position)
        assert_refused(store, artifact.key, f"{path.name}, byte {position}")
        flip(path, position)
    assert store.get(artifact.key) == artifact
    return count


def spoilt_artifacts(folder: Path, count: int, seed: int) -> int:
    """Shorten, lengthen, remove or replace a part of an artifact, or open it to others."""
    store, dice = filled(folder, "a", "b"), random.Random(seed)
    artifact = store.get(key_of("a"))
    assert artifact is not None
    kept = Path(shutil.copytree(artifact.path, folder / "kept"))
    for _ in range(count):
        spoil = dice.choice(_SPOILERS)
        spoil(artifact, dice.choice((MANIFEST, *NAMES)), dice)
        assert_refused(store, artifact.key, spoil.__name__)
        shutil.rmtree(artifact.path)
        shutil.copytree(kept, artifact.path)
    assert store.get(artifact.key) == artifact
    return count


def _shorten(artifact: Artifact, name: str, dice: random.Random) -> None:
    path = artifact.path / name
    path.write_bytes(path.read_bytes()[: dice.randrange(path.stat().st_size)])


def _lengthen(artifact: Artifact, name: str, dice: random.Random) -> None:
    with (artifact.path / name).open("ab") as stream:
        stream.write(dice.randbytes(dice.randrange(1, 9)))


def _remove(artifact: Artifact, name: str, dice: random.Random) -> None:
    (artifact.path / name).unlink()


def _add(artifact: Artifact, name: str, dice: random.Random) -> None:
    (artifact.path / f"{name}.{dice.randrange(99)}.so").write_bytes(b"code")


def _replace(artifact: Artifact, name: str, dice: random.Random) -> None:
    """Put a folder, a pipe or a link to the same bytes in the place of a file."""
    path, beside = artifact.path / name, artifact.path.parent.parent / "beside"
    path.replace(beside)
    kinds: list[Callable[[], Any]] = [path.mkdir]
    if os.name == "posix":
        kinds += [lambda: os.mkfifo(path), lambda: path.symlink_to(beside)]
    dice.choice(kinds)()


def _open(artifact: Artifact, name: str, dice: random.Random) -> None:
    if os.name != "posix":
        return _remove(artifact, name, dice)
    path = dice.choice((artifact.path, artifact.path / name, (artifact.path / name).parent))
    path.chmod(path.stat().st_mode | dice.choice((0o020, 0o002, 0o022)))
    return None


_SPOILERS = (_shorten, _lengthen, _remove, _add, _replace, _open)

ODD: tuple[Any, ...] = (None, True, 0, -1, 1.5, 10**30, float("nan"), "", "x" * 5000, "\x1b[31m")
ODD += ("../../x", "\ud800", "a\nb", [], [1], [[]], {}, {"": None}, {"unit": []}, {"a": {"b": [1]}})


def odd_manifests(folder: Path, count: int, seed: int) -> int:
    """Write nonsense into a manifest, with the right checksum and the user's own signature.

    So it can only be refused for its shape; where it is not, it is harmless.
    """
    store, dice = filled(folder, "a", "b"), random.Random(seed)
    artifact = store.get(key_of("a"))
    assert artifact is not None
    own = signing.store_key(None)
    assert own is not None
    for _ in range(count):
        odd = json.loads(json.dumps(artifact.manifest))
        _mutate(odd, dice)
        with contextlib.suppress(LookupError, TypeError, ValueError):  # not even written
            odd["key"] = dice.choice((odd["key"], manifests.recipe_key(odd["recipe"])))
        try:
            manifests.write_manifest(artifact.path, odd, own)
        except ValueError:  # what no file can hold
            (artifact.path / MANIFEST).write_bytes(b"")
        with contextlib.suppress(AccelError):
            found = store.get(artifact.key)
            assert found is not None
            assert found.recipe == artifact.recipe, odd
            assert found.manifest["files"] == artifact.manifest["files"], odd
        assert_calm(store, artifact.key)
    return count


def _mutate(manifest: dict[str, Any], dice: random.Random) -> None:
    """Change, remove or add something somewhere."""
    place: Any = manifest
    while isinstance(place, dict) and place:
        name = dice.choice(sorted(place))
        if not isinstance(place[name], (dict, list)) or dice.random() < 0.4:
            break
        place = place[name]
    if isinstance(place, list):
        place[:] = [dice.choice(ODD)]
    elif dice.random() < 0.2:
        place[dice.choice(("machine", "more", "x.so", "é"))] = dice.choice(ODD)
    elif place and dice.random() < 0.2:
        del place[dice.choice(sorted(place))]
    elif place:
        place[dice.choice(sorted(place))] = dice.choice(ODD)


def forged_manifests(folder: Path, count: int, seed: int) -> int:
    """Take the place of an artifact with other code, all checksums right, and any signature."""
    store, dice = filled(folder, "a", "b"), random.Random(seed)
    artifact = store.get(key_of("a"))
    assert artifact is not None
    evil = artifact.file(NAMES[0])
    for _ in range(count):
        evil.write_bytes(dice.randbytes(dice.randrange(1, 99)))
        forged = json.loads(json.dumps(artifact.manifest))
        size, digest = evil.stat().st_size, manifests.files.sha256(evil)
        forged["files"][NAMES[0]] = {"bytes": size, "sha256": digest}
        forged["signature"] = dice.choice((forged["signature"], dice.randbytes(32).hex(), "", None))
        if dice.random() < 0.3:
            del forged["signature"]
        (artifact.path / MANIFEST).write_bytes(manifests.encode(forged))
        assert_refused(store, artifact.key, forged["files"])
    return count


_WORK = """
import random
from lib_accel.errors import StoreError
dice = random.Random(int(sys.argv[2]))
files = {f"{n // 4}/{n}.pt2": pathlib.Path(sys.argv[3]) for n in range(8)}
store = ArtifactStore(store.root, max_bytes=40_000)
archive = store.root.parent / f"{sys.argv[2]}.zip"
print("ready", flush=True)
for turn in range(int(sys.argv[4])):
    name = dice.randrange(4)
    kind = dice.randrange(9)
    if kind < 3:
        store.put(recipe(name), files, {"turn": turn})
    elif kind == 3:
        store.discard(key_of(name), "next")
    elif kind == 4:
        store.clear() if dice.random() < 0.2 else None
    elif kind == 5:
        assert [p for _, p in store.verify() if p] == []
    elif kind == 6:
        assert [e.problem for e in store.list() if e.problem] == []
    elif kind == 7 and store.get(key_of(name)):
        try:
            store.export([key_of(name)], archive, None)
            store.import_(archive, None, allow_unsigned=True)
        except StoreError:
            pass  # it was removed in between
    else:
        store.get(key_of(name))
"""


def processes_at_once(folder: Path, count: int, seed: int) -> int:
    """Let two processes put, read, list, verify, export, import and remove, `count` times each."""
    store = filled(folder)
    two = [child(_WORK, store.root, seed * 2 + n, folder / "0", count) for n in range(2)]
    assert [finish(each, patience_s=20 + count / 5) for each in two] == [0, 0]
    assert [problem for _, problem in store.verify() if problem] == []
    return 2 * count


def kills(folder: Path, count: int, seed: int) -> int:
    """Kill two such processes at any moment, `count` times. Nothing is half-written, or stays."""
    store, dice = filled(folder), random.Random(seed)
    for turn in range(count):
        two = [child(_WORK, store.root, dice.randrange(10**6), folder / "0", 10**6) for _ in "12"]
        for each in two:
            assert each.stdout is not None
            each.stdout.readline()
        random.Random(turn).shuffle(two)
        with contextlib.suppress(subprocess.TimeoutExpired):
            two[0].wait(dice.uniform(0.01, 0.3))
        for each in two:
            finish(each, kill=True)
        assert [problem for _, problem in store.verify() if problem] == []
        if dice.random() < 0.5:
            store.clear()
            assert hidden(store.root) == []
    return 2 * count


ATTACKS: dict[str, tuple[Attack, int, int]] = {
    "flipped bytes": (flipped_bytes, 60, 800),
    "spoilt artifacts": (spoilt_artifacts, 60, 300),
    "odd manifests": (odd_manifests, 80, 2000),
    "forged manifests": (forged_manifests, 30, 500),
    "damaged archives": (damaged_archives, 60, 800),
    "odd members": (odd_members, 40, 300),
    "processes at once": (processes_at_once, 40, 1000),
    "kills": (kills, 3, 60),
}
"""By name: the attack, how often the tests try it, and how often a full run does."""
