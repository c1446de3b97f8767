"""The commands `store` and `doctor`, on a store that was filled by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib_accel.store import ArtifactStore, recipe_key

from .commands import Run, failure

RECIPES = [
    {
        "unit": {"layer": layer},
        "dtype": "float16",
        "machine": {"device_type": "cuda", "capability": "8.6", "torch": "2.13.0"},
    }
    for layer in ("ResBlock", "Output")
]
KEYS = [recipe_key(recipe) for recipe in RECIPES]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """A store with two units, as a compiler leaves them."""
    store = ArtifactStore(tmp_path / "store")
    code = tmp_path / "unit.so"
    code.write_bytes(b"native code" * 100)
    for recipe in RECIPES:
        store.put(recipe, {"data/unit.so": code}, name="SD1")
    return store


def test_doctor_runs_as_a_program_and_changes_nothing(tmp_path: Path, root: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "lib_accel", "doctor", "--json", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--store", str(store)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    result = json.loads(done.stdout)
    assert done.returncode == (0 if result["healthy"] else 1)
    assert {finding["level"] for finding in result["findings"]} <= {"ok", "note", "problem"}
    assert any("torch" in finding["what"] for finding in result["findings"])
    assert not store.exists()


def test_doctor_finds_a_store_that_cannot_be_used(run: Run, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    status, out, _ = run("doctor", "--device", "cpu", "--store", tmp_path / "store")
    assert status == 1
    assert "PROBLEM  the artifact store cannot be used\n         -> " in out


def test_doctor_finds_a_device_that_is_missing_and_a_driver_that_is_not_used(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = run("doctor", "--device", "cuda")
    assert (status, err) == (1, "")
    assert "PROBLEM  --device cuda: this torch (" in out
    there = tmp_path / ("nvidia-smi.exe" if os.name == "nt" else "nvidia-smi")
    there.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert "note     torch does not use this machine's NVIDIA driver" in run("doctor")[1]
    assert "NVIDIA driver" not in run("doctor", "--device", "cpu")[1]


def test_doctor_says_what_is_wrong_with_a_torch_that_is_damaged(root: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12 is missing')")
    done = subprocess.run(
        [sys.executable, "-m", "lib_accel", "doctor"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "PROBLEM  torch does not work in this Python (3." in done.stdout
    assert "libcudart.so.12 is missing" in done.stdout


def test_artifacts_are_listed_verified_and_cleared(run: Run, store: ArtifactStore) -> None:
    status, out, _ = run("store", "list", "--store", store.root)
    assert status == 0
    assert len(out.splitlines()) == 2
    shown = "SD1, 2 units, float16, torch 2.13.0, cuda 8.6, built here (not for this torch)"
    assert shown in out
    assert out.endswith(f"2 units, 0.0 MiB in {store.root}\n")
    listed = json.loads(run("store", "list", "--store", store.root, "--json")[1])
    assert sorted(row["key"] for row in listed["artifacts"]) == sorted(KEYS)
    assert {row["unit"]["layer"] for row in listed["artifacts"]} == {"ResBlock", "Output"}
    told = {(row["name"], row["misfit"]) for row in listed["artifacts"]}
    assert told == {("SD1", "not for this torch")}

    assert run("store", "verify", "--store", store.root)[:2] == (0, "2 good, 0 damaged\n")
    file = store.root / KEYS[0] / "data" / "unit.so"
    file.write_bytes(file.read_bytes().replace(b"n", b"N", 1))
    status, out, _ = run("store", "verify", "--store", store.root, "--json")
    assert status == 1
    assert list(json.loads(out)["damaged"]) == [KEYS[0]]
    (store.root / KEYS[0] / "manifest.json").write_text("{}")
    lines = run("store", "list", "--store", store.root)[1].splitlines()
    assert len(lines) == 3, "one that is damaged stands alone"
    assert any(KEYS[0][:12] in line and "NOT USABLE" in line for line in lines)

    cleared = json.loads(run("store", "clear", "--yes", "--store", store.root, "--json")[1])
    assert cleared["bytes_freed"] > 2 * 1100
    empty = f"0 units, 0.0 MiB in {store.root}\n"
    assert run("store", "list", "--store", store.root)[1] == empty
    export = run("store", "export", "all", "--to", store.root / "x.zip", "--store", store.root)
    assert "holds no usable artifact" in failure(export)


def test_artifacts_are_exported_and_imported(
    run: Run, store: ArtifactStore, tmp_path: Path
) -> None:
    archive, key, other = tmp_path / "fleet.zip", tmp_path / "fleet.key", tmp_path / "other"
    export = ("store", "export", "all", "--to", archive, "--key", key, "--store", store.root)
    status, out, err = run(*export)
    assert (status, out) == (0, f"2 units written to {archive} (signed)\n")
    assert "made a new key" in err
    assert "give --key FILE" in failure(run("store", "import", archive, "--store", other))
    status, out, _ = run("store", "import", archive, "--key", key, "--store", other)
    assert status == 0
    assert "imported from fleet.zip, signature checked" in out

    group = run("store", "list", "--store", store.root)[1].split()[0]
    export = ("store", "export", group, "--to", tmp_path / "g.zip", "--store", store.root, "--json")
    assert sorted(json.loads(run(*export)[1])["keys"]) == sorted(KEYS)

    unsigned, third = tmp_path / "unsigned.zip", tmp_path / "third"
    export = ("store", "export", KEYS[0][:8], "--to", unsigned, "--store", store.root, "--json")
    status, out, _ = run(*export)
    assert json.loads(out) == {"file": str(unsigned), "keys": [KEYS[0]], "signed": False}
    refused = run("store", "import", unsigned, "--key", key, "--store", third)
    assert "it is not signed" in failure(refused)
    allowed = ("store", "import", unsigned, "--allow-unsigned", "--store", third, "--json")
    status, out, _ = run(*allowed)
    assert json.loads(out)["keys"] == [KEYS[0]]


def test_failures_of_the_store_are_named(run: Run, store: ArtifactStore, tmp_path: Path) -> None:
    group = run("store", "list", "--store", store.root)[1].split()[0]
    export = run("store", "export", "xy", "--to", tmp_path / "x.zip", "--store", store.root)
    assert f"'xy' fits 0 keys of {store.root}; expected exactly one of: {group}" in failure(export)

    def imported(archive: Path, *how: object) -> str:
        return failure(run("store", "import", archive, *how, "--store", store.root))

    absent = tmp_path / "absent"
    (tmp_path / "file").write_bytes(b"no zip")
    assert f"{absent} does not exist. Check the name" in imported(absent, "--allow-unsigned")
    assert f"{absent} does not exist. Check the name" in imported(absent), "before it wants a key"
    message = imported(tmp_path / "file", "--key", absent)
    assert message.startswith("Could not read the key file")
    assert f"{absent} does not exist. Check the name" in message
    export = ("store", "export", "all", "--to", absent / "x.zip", "--store", store.root)
    message = failure(run(*export))
    assert f"the folder {absent} does not exist. Check the name" in message
    assert "is not a whole zip" in imported(tmp_path / "file", "--allow-unsigned")
    for action in ("list", "verify", "clear", "delete x"):
        assert "Not a directory" in failure(
            run("store", *action.split(), "--store", tmp_path / "file")
        )


@pytest.mark.parametrize("action", [("clear",), ("delete", KEYS[0][:8])])
def test_nothing_is_removed_where_nobody_can_answer(
    run: Run, store: ArtifactStore, action: tuple[str, ...]
) -> None:
    message = failure(run("store", *action, "--store", store.root))
    assert message.startswith("Remove ")
    assert message.endswith("give --yes to do it without asking")
    assert len(store.list()) == 2


def test_a_unit_a_group_and_one_that_is_damaged_are_deleted(run: Run, store: ArtifactStore) -> None:
    delete = ("store", "delete", "--yes", "--store", store.root)
    assert "'x' fits 0 keys" in failure(run(*delete, KEYS[0][:8], "x"))
    assert "fits 0 keys" in failure(run(*delete, ""))
    assert len(store.list()) == 2, "nothing is deleted where one of the names is wrong"
    status, out, err = run(*delete, KEYS[0][:8], KEYS[0])
    assert (status, err) == (0, "")
    assert out.endswith(f" MiB freed in {store.root}\n")
    assert [e.key for e in store.list()] == [KEYS[1]]
    (store.root / KEYS[1] / "manifest.json").write_text("{}")
    assert json.loads(run(*delete, KEYS[1], "--json")[1])["bytes_freed"] > 1100
    assert store.list() == []
    store.put(RECIPES[0], {"data/unit.so": store.root / ".accel-store"})
    group = run("store", "list", "--store", store.root)[1].split()[0]
    assert run(*delete, group)[0] == 0
    assert failure(run(*delete, group)) == f"the store {store.root} is empty"


def test_an_export_replaces_no_file_unless_that_is_wanted(
    run: Run, store: ArtifactStore, tmp_path: Path
) -> None:
    file, key = tmp_path / "photo.zip", tmp_path / "new.key"
    file.write_text("not to be lost")
    export = ("store", "export", "all", "--to", file, "--key", key, "--store", store.root)
    message = failure(run(*export))
    assert message == f"{file} exists. Choose another name, or replace it with --force"
    assert file.read_text() == "not to be lost"
    assert not key.exists()
    assert run(*export, "--force")[0] == 0
    assert file.read_bytes().startswith(b"PK")
