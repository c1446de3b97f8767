"""The command `gpu` on the pretend card: every part of it is gone through, with tiny UNets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lib_accel.model.architecture import Architecture
from lib_accel.store import ArtifactStore
from lib_accel.store.manifest import UNTUNED
from lib_accel.tools.cli import main, prebuild
from lib_accel.tools.gpu import process
from lib_accel.tools.gpu.jobs import JOBS, architecture_of
from lib_accel.tools.gpu.setting import Setting

CARD = int(os.environ.get("PRETEND_CARD", "86"))


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the laboratory compiles ahead for the dry run."""
    folder = tmp_path_factory.mktemp("carried")
    given = ["prebuild", "--family", "sd1", "--family", "sdxl", "--for", f"cuda:sm_{CARD}"]
    given += ["--workers", "2", "--store", str(folder / "store")]

    def small(name: str, *_: str) -> Architecture:
        return architecture_of(name, dry_run=True)

    with mock.patch.object(prebuild, "family", small):
        assert main(given) == 0
    store, file = ArtifactStore(folder / "store"), folder / "carried.zip"
    entries = store.list()
    assert all(e.artifact and e.artifact.verdict is None for e in entries)
    assert all(e.artifact and e.artifact.manifest["origin"].endswith(UNTUNED) for e in entries)
    store.export([entry.key for entry in entries], file, None)
    return file


def begin(folder: Path, *more: object) -> tuple[int, dict[str, Any], str]:
    """Run the command as a user does; return its status, its JSON and what it said."""
    words = ["gpu", "--dry-run", "--rounds", 1, "--minutes", 60, "--json", "--out", folder, *more]
    command = [sys.executable, "-W", "ignore", "-m", "lib_accel", *map(str, words)]
    done = subprocess.run(command, cwd=process.ROOT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def known(carried: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a whole run."""
    folder = tmp_path_factory.mktemp("run")
    status, record, said = begin(folder, "--carried", carried, "--allow-unsigned")
    assert status == 0, said
    (file,) = folder.glob("gpu-*.json")
    assert json.loads(file.read_text()) == record
    assert file.with_suffix(".md").read_text().startswith(f"# Pretend sm_{CARD}, torch ")
    return record


def test_every_part_comes_to_an_end(known: dict[str, Any]):
    assert {name: job["why"] for name, job in known["jobs"].items() if job["why"]} == {}
    assert {job["state"] for job in known["jobs"].values()} == {"done"}
    assert list(known["jobs"]) == [job.name for job in JOBS]


def test_the_record_says_that_the_card_is_pretended(known: dict[str, Any]):
    assert known["identity"]["dry_run"]
    assert [note for note in known["notes"] if note.startswith("this card is pretended")]


def test_carried_code_is_found_and_not_called_checked(known: dict[str, Any]):
    for name in ("SD1.5, compiled code", "SDXL, compiled code"):
        units = known["jobs"][name]["result"]["units"]
        assert len(units) == 5
        for unit in units:
            assert unit["origin"] in ("carried", "stored before")
            if unit["origin"] == "carried":
                assert unit["problem"] == "not checked: a pretend card computes nothing"


def test_every_way_is_timed_and_recordings_are_made(known: dict[str, Any]):
    rows = {row["name"]: row for row in known["jobs"]["SD1.5, every way"]["result"]["rows"]}
    assert list(rows) == [*next(job for job in JOBS if job.kind == "ladder").variants]
    assert all(row["median_s"] for row in rows.values())
    assert rows["reference"]["note"].startswith("diffusers is not installed: this is our own plain")
    assert rows["aoti+graphs"]["note"] == ""


def test_torch_compile_is_timed_too(known: dict[str, Any]):
    for name in ("SD1.5, torch.compile at its best", "SD1.5, units under torch.compile"):
        rows = known["jobs"][name]["result"]["rows"]
        assert {row["name"]: bool(row["median_s"]) for row in rows} == {
            row["name"]: True for row in rows
        }


def test_without_carried_code_the_rows_that_need_it_say_so(carried: Path, tmp_path: Path):
    """On a real card it would be compiled; here nothing that is compiled could pass its check."""
    given = Setting("cuda:0", "float16", str(tmp_path / "s"), "", 64, "", (), 1, True, True, 600.0)
    results: list[dict[str, Any]] = []
    first, _, second = JOBS[:3]
    outcome = process.run(first, given, tmp_path / "log", results.append)
    assert outcome.state == "failed"
    assert "a pretend card checks nothing" in outcome.why
    assert [unit["origin"] for unit in results[-1]["units"]] == ["missing"] * 5
    rows_of = replace(second, variants=("eager", "aoti"))
    assert process.run(rows_of, given, tmp_path / "log", results.append).state == "done"
    eager, aoti = results[-1]["rows"]
    assert eager["median_s"] > 0
    assert "5 of 5 compiled units are missing" in aoti["note"]


def test_code_for_another_card_is_not_called(carried: Path, tmp_path: Path):
    store = ArtifactStore(tmp_path / "carried")
    store.import_(carried, None, allow_unsigned=True)
    environment = {**os.environ, "PRETEND_CARD": "75" if CARD != 75 else "89"}
    words = ["gpu", "--dry-run", "--minutes", "1", "--json", "--out", str(tmp_path / "out")]
    words += ["--carried", str(carried), "--allow-unsigned"]
    process_of = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "lib_accel", *words],
        cwd=process.ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process_of.stderr is not None
    try:
        said = next(line for line in process_of.stderr if "are not in the carried code" in line)
    finally:
        process_of.terminate()
        process_of.wait()
        process_of.stderr.close()
    assert "5 of 5 units of" in said
    assert "which was made for capability" in said
