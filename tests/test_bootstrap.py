"""The set-up: its decisions as tables, and the real thing offline, with tiny wheels that stand in for torch and the rest."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import lib_accel
from lib_accel.tools import bootstrap, requirements
from lib_accel.tools.bootstrap import Stamp
from lib_accel.tools.requirements import (
    CPU_INDEX,
    CUDA_INDEX,
    TORCH,
    Requirement,
    parse_pip_settings,
    pip_own_source,
    read_lists,
    torch_attempts,
)

OLD_PYTHON_MUST_READ = (
    "lib_accel/__init__.py",
    "lib_accel/__main__.py",
    "tests/__init__.py",
    "tests/__main__.py",
)


def lists(**groups: list[str]) -> dict[str, list[Requirement]]:
    return {group: [Requirement.parse(text) for text in texts] for group, texts in groups.items()}


# --- the lists


def test_lists_are_what_a_toml_library_reads(root: Path):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    expected = {"run": project["dependencies"], **project["optional-dependencies"]}
    assert {
        group: [entry.text for entry in entries]
        for group, entries in read_lists(root / "pyproject.toml").items()
    } == expected


def test_lists_with_comments_brackets_and_one_line(tmp_path: Path):
    file = tmp_path / "pyproject.toml"
    optional = (
        '[project.optional-dependencies]\nt = [\n  # no ] here\n  "c==2",\n]\n[tool]\nu = ["d"]\n'
    )
    file.write_text('[project]\ndependencies = ["a", "b[x]>=1"]\n' + optional)
    assert read_lists(file) == lists(run=["a", "b[x]>=1"], t=["c==2"])


def test_one_version_of_ours(root: Path):
    assert f'version = "{lib_accel.__version__}"' in (root / "pyproject.toml").read_text(
        encoding="utf-8"
    )


def test_a_requirement_we_cannot_check_is_refused():
    with pytest.raises(ValueError, match=r"'torch>=2,<3'; expected NAME\[EXTRAS\]"):
        Requirement.parse("torch>=2,<3")


@pytest.mark.parametrize(
    ("text", "version", "admitted"),
    [
        ("torch>=2.1", "2.13.0+cpu", True),
        ("torch>=2.1", "2.1", True),
        ("torch>=2.1.0", "2.1", True),
        ("torch>=2.1", "2.0.1", False),
        ("torch>=2.10", "2.9", False),
        ("ruff==0.17.6", "0.17.6", True),
        ("ruff==0.17.6", "0.17.60", False),
        ("tqdm", "0.0.1", True),
    ],
)
def test_versions(text: str, version: str, admitted: bool):
    assert Requirement.parse(text).admits(version) is admitted


def test_missing_names_the_absent_and_the_old():
    wanted = lists(run=["pytest>=8", "pytest>=999", "no-such-thing", "pillow"])["run"]
    assert [entry.text for entry in requirements.missing(wanted)] == [
        "pytest>=999",
        "no-such-thing",
    ]


# --- which torch


@pytest.mark.parametrize(
    ("system", "nvidia", "own", "override", "expected"),
    [
        ("Linux", True, "", "", [(TORCH,)]),
        ("Linux", False, "", "", [(TORCH, "--index-url", CPU_INDEX), (TORCH,)]),
        ("Windows", True, "", "", [(TORCH, "--index-url", CUDA_INDEX), (TORCH,)]),
        ("Windows", False, "", "", [(TORCH, "--index-url", CPU_INDEX), (TORCH,)]),
        ("Darwin", False, "", "", [(TORCH,)]),
        ("Linux", False, "find-links = /opt/wheels", "", [(TORCH,)]),
        ("Windows", True, "index-url = https://mirror", "", [(TORCH,)]),
        (
            "Windows",
            True,
            "index-url = https://mirror",
            "torch==2.5.1 --index-url https://x/cu124",
            [("torch==2.5.1", "--index-url", "https://x/cu124")],
        ),
        ("Windows", False, "", r"C:\wheels\torch.whl", [(r"C:\wheels\torch.whl",)]),
        ("Linux", False, "", "  ", [(TORCH, "--index-url", CPU_INDEX), (TORCH,)]),
    ],
)
def test_torch_attempts(
    system: str, nvidia: bool, own: str, override: str, expected: list[tuple[str, ...]]
):
    assert [
        attempt.arguments for attempt in torch_attempts(system, nvidia, own, override)
    ] == expected


def test_a_mirror_on_windows_with_nvidia_says_how_to_get_cuda():
    assert CUDA_INDEX in torch_attempts("Windows", True, "index-url = https://mirror")[0].why


@pytest.mark.parametrize(
    ("listed", "source"),
    [
        ("global.timeout='60'\n:env:.cert='/x'\n", ""),
        ("global.find-links='/opt/wheels'\n", "find-links = /opt/wheels"),
        (":env:.index-url='https://m/simple'\n", "index-url = https://m/simple"),
        (":env:.no-index='1'\n", "no-index = 1"),
        ("global.no-index='false'\n", ""),
        ("", ""),
    ],
)
def test_pip_settings(listed: str, source: str):
    assert pip_own_source(parse_pip_settings(listed)) == source


# --- what to say, what is due


@pytest.mark.parametrize(
    ("complaint", "hint"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "disk is full",
        ),
        (
            "WARNING: Retrying ... NewConnectionError: Failed to establish a new connection\nERROR: No matching distribution found",
            "network",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0", "ACCEL_TORCH"),
        ("[Errno 13] Permission denied: '/x'", "rights"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", "PIP_CERT"),
    ],
)
def test_hints(complaint: str, hint: str):
    assert hint in bootstrap.explain(complaint)


def test_what_is_due():
    wanted = lists(run=["torch>=2.1", "tqdm"], test=["pytest"])
    done = Stamp(
        torch=TORCH, lists={group: bootstrap.digest(entries) for group, entries in wanted.items()}
    )
    assert done.due(wanted) == []
    assert Stamp().due(wanted) == ["torch", "run", "test"]
    assert done.due({**wanted, **lists(test=["pytest", "ruff"])}) == ["test"]
    assert done.due({**wanted, **lists(bench=["openvino"])}) == ["bench"]
    assert done.due(wanted, "torch==2.5") == ["torch"]  # asked for another one now
    done.torch = "torch==2.12.0"
    assert done.due(wanted) == ["torch"]  # we have moved on
    done.torch_chosen = True
    assert done.due(wanted) == []  # the user's choice stays
    assert Stamp().due(lists(run=["tqdm"])) == ["run"]  # no torch wanted


def test_a_damaged_stamp_counts_as_interrupted(tmp_path: Path):
    assert Stamp.read(tmp_path) is None
    stamp = Stamp(step="installing torch", lists={"run": "0"})
    stamp.write(tmp_path)
    assert Stamp.read(tmp_path) == stamp
    (tmp_path / bootstrap.STAMP).write_text('{"step": nu')
    damaged = Stamp.read(tmp_path)
    assert damaged is not None
    assert damaged.step


def test_without_ensurepip_the_package_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        bootstrap.SetupError,
        match=rf"sudo apt install python{sys.version_info[0]}\.{sys.version_info[1]}-venv",
    ):
        bootstrap.create(tmp_path / ".venv", None)
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("module", ["lib_accel", "tests"])
def test_an_old_python_is_told(root: Path, module: str):
    code = f"import runpy, sys; sys.version_info = (3, 9, 0); sys.version = '3.9.0 (old)'; runpy.run_module({module!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs Python 3.10 or newer; this is 3.9" in done.stderr


@pytest.mark.parametrize("name", OLD_PYTHON_MUST_READ)
def test_an_old_python_can_read_as_far_as_that(root: Path, name: str):
    ast.parse((root / name).read_text(encoding="ascii"), feature_version=(3, 4))


@pytest.mark.parametrize(
    "python", [(sys.executable,), (sys.executable, "-S")], ids=["set up", "bare"]
)
def test_help_installs_nothing(root: Path, python: tuple[str, ...]):
    """-S: without site-packages, as on a fresh machine."""
    done = subprocess.run(
        [*python, "-m", "lib_accel", "--help"], cwd=root, capture_output=True, text=True
    )
    assert "[set-up]" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


# --- the real thing, offline


def make_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"__version__ = {version!r}\n")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(
            f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )


class Project:
    """A small project that sets itself up as ours does: a torch and one more requirement, from a folder of wheels."""

    def __init__(self, folder: Path, root: Path):
        self.folder, self.venv, self.wheels = folder, folder / ".venv", folder / "wheels"
        for name in ("__init__", "bootstrap", "requirements"):
            target = folder / "lib_accel" / f"{name}.py"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / "lib_accel" / f"{name}.py", target)
        self.wheels.mkdir()
        make_wheel(self.wheels, "torch", "2.13.0")
        make_wheel(self.wheels, "acceltiny", "1.0")
        (folder / "pyproject.toml").write_text(
            '[project]\ndependencies = ["torch>=2.1", "acceltiny>=1"]\n[project.optional-dependencies]\ntest = ["accelmore==1.5"]\n'
        )
        (folder / "job.py").write_text(
            "import sys\nfrom lib_accel.tools.bootstrap import ensure\nensure('job', sys.argv[1:], groups=sys.argv[1].split(','))\n"
            "import acceltiny, torch\nprint('ran', torch.__version__, sys.argv[2:])\nsys.exit(7)\n"
        )

    def command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        own = {
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
        }
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PIP_", "ACCEL_"))
        }
        return [sys.executable, "-m", "job", *arguments], {**kept, **own}

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(*arguments)
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command, environment = self.command(*arguments)
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stamp(self) -> dict[str, object]:
        return json.loads((self.venv / bootstrap.STAMP).read_text())


@pytest.fixture
def project(tmp_path: Path, root: Path) -> Project:
    return Project(tmp_path, root)


def test_first_run_second_run_and_a_new_list(project: Project):
    first = project.run("run", "two words", "--flag")
    assert first.returncode == 7, first.stderr  # the command's own status
    assert (
        first.stdout == "ran 2.13.0 ['two words', '--flag']\n"
    )  # and nothing of pip's in its output
    for said in (
        " lacks ",
        "acceltiny>=1",
        "Creating an environment",
        "Installing torch==2.13.0 from where pip is set",
        "Ready",
    ):
        assert said in first.stderr

    started = time.monotonic()
    second = project.run("run", "again")
    assert (second.returncode, second.stdout, second.stderr) == (7, "ran 2.13.0 ['again']\n", "")
    assert time.monotonic() - started < 3  # some 0.2 s; the margin is for a busy machine

    # A list that cannot be had: said so, nothing lost, and had later without a new environment.
    failed = project.run("run,test")
    assert failed.returncode == 1
    assert "No matching distribution" in failed.stderr
    assert "Set-up failed" in failed.stderr
    assert project.run("run").returncode == 7
    make_wheel(project.wheels, "accelmore", "1.5")
    added = project.run("run,test")
    assert added.returncode == 7
    assert "Creating" not in added.stderr
    assert "Installing torch" not in added.stderr

    # Someone else's environment, as far as we can see (no stamp): added to, its torch left alone.
    (project.venv / bootstrap.STAMP).unlink()
    adopted = project.run("run")
    assert adopted.returncode == 7
    assert "torch 2.13.0 is there; it stays" in adopted.stderr
    assert project.stamp()["adopted"] is True

    # Run from inside, with something taken out by hand: put back.
    python = bootstrap.interpreter(project.venv)
    subprocess.run([python, "-m", "pip", "uninstall", "-qy", "acceltiny"], check=True)
    command, environment = project.command("run")
    inside = subprocess.run(
        [python, *command[1:]], cwd=project.folder, env=environment, capture_output=True, text=True
    )
    assert inside.returncode == 7, inside.stderr
    assert "Installing torch" not in inside.stderr


def test_killed_while_creating_then_two_at_once(project: Project):
    process = project.start("run")
    deadline = time.monotonic() + 60
    while not (project.venv / "pyvenv.cfg").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert project.stamp()["step"] == "creating the environment"

    both = [project.start("run", "a"), project.start("run", "b")]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [7, 7], outputs
    said = "".join(stderr for _, stderr in outputs)
    assert "stopped while creating the environment: starting afresh" in said
    assert said.count("Creating an environment") == 1
    assert "waiting for it" in said
    assert not list(project.folder.glob(".venv.old-*"))


def test_a_folder_that_is_no_environment_is_left_alone(project: Project):
    project.venv.mkdir()
    (project.venv / "mine.txt").write_text("keep")
    done = project.run("run")
    assert done.returncode == 1
    assert "is no environment that works" in done.stderr
    assert (project.venv / "mine.txt").read_text() == "keep"


def test_unreachable_override_is_explained(project: Project):
    done = project.run("run", ACCEL_TORCH="torch==9.9")
    assert done.returncode == 1
    assert "Installing torch==9.9 as ACCEL_TORCH says" in done.stderr
    assert "There is no such package for this Python" in done.stderr
    assert project.stamp()["step"] is None
