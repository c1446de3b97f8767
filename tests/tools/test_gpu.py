"""The run on a GPU: its order, its record, and what a crash costs. Here on a CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lib_accel.errors import AccelError
from lib_accel.tools import setup_environment
from lib_accel.tools.cli import gpu
from lib_accel.tools.gpu import process
from lib_accel.tools.gpu import run as running
from lib_accel.tools.gpu.jobs import JOBS, Job
from lib_accel.tools.gpu.process import Outcome
from lib_accel.tools.gpu.record import Record
from lib_accel.tools.gpu.setting import Setting

from .commands import Run, failure

ROWS = Job("rows", "ladder", 10, variants=("reference+sdpa", "eager", "aoti"))
SETTING = Setting("cpu", "float32", "", "", 64, "", (), 1, dry_run=True, pretended=False)
IDENTITY = {"device_name": "A card", "torch": "2.13.0+cu", "source": 64 * "a", "dry_run": False}


def record(folder: Path, **identity: Any) -> Record:
    return Record(folder, IDENTITY | identity, 8)


def setting(folder: Path, **fields: Any) -> Setting:
    return replace(SETTING, store_folder=str(folder / "store"), **fields)


def test_a_record_goes_on_for_the_same_machine_torch_and_source(tmp_path: Path) -> None:
    first = record(tmp_path)
    first.jobs["a"] = {"state": "done", "result": {"error": float("nan")}}
    first.save()
    again = record(tmp_path)
    assert again.jobs == {"a": {"state": "done", "result": {"error": None}}}, "JSON has no NaN"
    assert len(again.data["runs"]) == 2
    others = [{"torch": "2.14"}, {"device_name": "B"}, {"source": 64 * "b"}, {"dry_run": True}]
    assert all(record(tmp_path, **other).jobs == {} for other in others)
    assert len(list(tmp_path.glob("*.json"))) == 5


def test_a_file_that_is_no_record_is_left_alone(tmp_path: Path, run: Run) -> None:
    file = record(tmp_path).path
    file.write_text('{"jobs": 1}')
    with pytest.raises(AccelError, match="is no result of this command"):
        record(tmp_path)
    assert file.read_text() == '{"jobs": 1}'


class Children:
    """Stands for the processes: their outcomes by the name of the job; they take no time."""

    def __init__(self, **outcomes: list[Outcome]):
        self.outcomes = outcomes
        self.begun: list[tuple[str, tuple[str, ...], float]] = []

    def run(self, job: Job, given: Setting, log: Path, keep: Any) -> Outcome:
        self.begun.append((job.name, given.without, given.seconds))
        keep({"of": job.name})
        left = self.outcomes.get(job.name)
        return left.pop(0) if left else Outcome("done")

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.begun]


def begin(
    children: Children, folder: Path, monkeypatch: pytest.MonkeyPatch, minutes: float = 8
) -> dict[str, Any]:
    monkeypatch.setattr(process, "run", children.run)
    jobs = [Job(name, "loras", seconds) for name, seconds in (("a", 60), ("b", 200), ("c", 30))]
    kept = record(folder)
    conditions = setting(folder, dry_run=False)
    running.run(jobs, conditions, kept, minutes, time.monotonic())
    return json.loads(kept.path.read_text())


def test_only_what_fits_is_begun_and_the_rest_follows_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children()
    known = begin(children, tmp_path, monkeypatch, minutes=2)
    assert children.names == ["a", "c"], "b is expected to take longer"
    assert known["jobs"]["b"]["state"] == "left out"
    assert known["jobs"]["b"]["why"].startswith("left out: it takes about 200 s, and 1")
    assert all(seconds <= 120 for *_, seconds in children.begun)
    later = Children()
    known = begin(later, tmp_path, monkeypatch)
    assert later.names == ["b"]
    assert {job["state"] for job in known["jobs"].values()} == {"done"}


def test_what_failed_comes_after_the_rest_and_not_a_third_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [
        Outcome("ended", "its time was over")
    ]  # with that of the whole run: no fault of its own
    failing = Children(a=[Outcome("failed", "no")], c=late)
    assert begin(failing, tmp_path, monkeypatch, minutes=2)["jobs"]["a"]["why"] == "no"
    again = Children(a=[Outcome("failed", "no")])
    begin(again, tmp_path, monkeypatch)
    assert again.names == ["b", "c", "a"]
    last = Children()
    begin(last, tmp_path, monkeypatch)
    assert last.names == []


def test_a_part_that_ends_the_process_is_left_out_of_a_second_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(a=[Outcome("failed", "signal 11", at="aoti")])
    known = begin(children, tmp_path, monkeypatch)
    assert [(name, without) for name, without, _ in children.begun[:2]] == [
        ("a", ()),
        ("a", ("aoti",)),
    ]
    assert known["jobs"]["a"] | {"seconds": 0} == {
        "state": "done",
        "failures": 1,
        "why": "signal 11",
        "result": {"of": "a"},
        "seconds": 0,
    }


@pytest.mark.parametrize("name", ["SD1.5, TensorRT for RTX", "SD1.5, fused kernels"])
def test_what_a_backend_cannot_compute_is_left_out_with_its_reason(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children()
    monkeypatch.setattr(process, "run", children.run)
    (job,) = [job for job in JOBS if job.name == name]
    kept = record(tmp_path)
    running.run([job], setting(tmp_path, dry_run=True), kept, 8, time.monotonic())
    assert children.names == []
    assert re.match("left out: .* NVIDIA's cards alone", kept.jobs[job.name]["why"])


def test_the_jobs_have_names_of_their_own_and_the_dearest_come_last() -> None:
    names = [job.name for job in JOBS]
    assert len(set(names)) == len(names)
    assert max(JOBS, key=lambda job: job.seconds) is JOBS[-1]
    first = [job for job in JOBS if job.kind != "tests"][:10]
    assert sum(job.seconds for job in first) < 8 * 60, "what the issue asks for first must fit"


def kill_children() -> None:
    for child in psutil.Process().children():
        if "lib_accel.tools.gpu.measure" in child.cmdline():
            os.kill(child.pid, signal.SIGKILL)


@pytest.mark.slow
def test_rows_are_kept_when_their_process_is_killed(tmp_path: Path) -> None:
    kept: list[dict[str, Any]] = []

    def keep(result: dict[str, Any]) -> None:
        kept.append(result)
        if len(result["rows"]) == 2:
            kill_children()

    log = tmp_path / "log"
    outcome = process.run(ROWS, setting(tmp_path, seconds=100.0), log, keep)
    assert outcome.state == "failed"
    assert "its process ended (signal 9)" in outcome.why
    assert [row["name"] for row in kept[-1]["rows"]] == ["reference+sdpa", "eager"]
    assert all(row["one_call_s"] > 0 for row in kept[-1]["rows"])


@pytest.mark.slow
def test_a_job_whose_time_is_over_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    outcome = process.run(ROWS, setting(tmp_path, seconds=0.5), tmp_path / "log", lambda _: None)
    assert outcome.state == "ended"
    assert time.monotonic() - began < 20
    assert not [c for c in psutil.Process().children() if c.status() != psutil.STATUS_ZOMBIE]


def test_gpu_refuses_a_machine_without_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = failure(run("gpu", "--out", tmp_path / "out"))
    assert message.startswith("this torch (")
    assert message.endswith("A CPU needs hours for what `gpu` measures; --device cpu insists on it")
    assert not (tmp_path / "out").exists()


def test_carried_code_needs_a_key_or_consent(run: Run, tmp_path: Path) -> None:
    arguments = ("--dry-run", "--device", "cpu", "--out", tmp_path, "--carried", tmp_path / "x")
    assert "give --key FILE" in failure(run("gpu", *arguments))


def test_the_torch_that_is_there_is_measured_and_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another torch, in .venv, would be another thing to measure; and there may be no network."""
    from lib_accel.tools.cli import main

    monkeypatch.setattr(setup_environment, "ensure", lambda: pytest.fail("it installs something"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"], set_up=True) == 1
    assert "sees no GPU" in (err := capsys.readouterr().err) or "for CPUs alone" in err
    monkeypatch.setattr(setup_environment, "missing", lambda: ["tqdm"])
    assert main(["gpu"], set_up=True) == 1
    assert "Expected: pip install tqdm" in capsys.readouterr().err


@pytest.fixture
def command(tiny_store: Path, tmp_path: Path) -> list[str]:
    """The command of a dry run whose units are compiled already."""
    shutil.copytree(tiny_store, tmp_path / "out" / "dry-run.store")
    words = ["gpu", "--dry-run", "--device", "cpu", "--rounds", "1", "--out", str(tmp_path / "out")]
    return [sys.executable, "-m", "lib_accel", *words]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_was(
    command: list[str], tmp_path: Path, root: Path
) -> None:
    def until(done: str) -> dict[str, Any]:
        """Start the command and kill it when a job is done."""
        process = subprocess.Popen(command, cwd=root, start_new_session=True)
        try:
            while True:
                time.sleep(0.2)
                assert process.poll() is None
                for file in (tmp_path / "out").glob("gpu-*.json"):
                    known = json.loads(file.read_text())
                    if known["jobs"].get(done, {}).get("state") == "done":
                        return known
        finally:
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            process.kill()
            process.wait()

    first = JOBS[0].name
    second = next(job.name for job in JOBS if job.kind == "ladder")
    known = until(first)["jobs"][first]
    assert [unit["origin"] for unit in known["result"]["units"]] == ["stored before"] * 5
    after = until(second)
    assert after["jobs"][first] == known
    rows = {row["name"]: row for row in after["jobs"][second]["result"]["rows"]}
    assert rows["aoti"]["median_s"] > 0
    assert "CUDA graphs need a CUDA device" in rows["aoti+graphs"]["note"]
    assert gpu._compiled_code_ran(after["jobs"])


PARENT = """
import sys
from pathlib import Path
from tests.tools import test_gpu

folder = Path(sys.argv[1])
given = test_gpu.setting(folder, seconds=100.0)
test_gpu.process.run(test_gpu.ROWS, given, folder / "log", lambda _: print("begun", flush=True))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_job_ends_when_the_command_is_killed(tmp_path: Path, root: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"begun\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
        child.wait(20)


@pytest.mark.slow
def test_a_process_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ROOT", tmp_path)
    (tmp_path / "lib_accel.py").write_text("raise SystemExit('no such library')")
    outcome = process.run(ROWS, setting(tmp_path, seconds=60.0), tmp_path / "log", lambda _: None)
    assert outcome.state == "failed"
    assert outcome.why == "its process ended (exit status 1): no such library"
