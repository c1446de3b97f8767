"""The set-up: its decisions as tables, then whole runs with tiny wheels in place of torch."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

import lib_accel
from lib_accel.tools import setup_environment
from lib_accel.tools.setup_environment import CPU_INDEX, CUDA_INDEX, MARK, TORCH, torch_arguments

CPU, CUDA = [TORCH, "--extra-index-url", CPU_INDEX], [TORCH, "--extra-index-url", CUDA_INDEX]


def test_pyproject_names_the_lists_and_the_version(root: Path):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    lists = project["tool"]["setuptools"]["dynamic"]
    files = lists["dependencies"]["file"], lists["optional-dependencies"]["test"]["file"]
    assert files == setup_environment.TEST
    assert project["project"]["version"] == lib_accel.__version__


def test_missing_names_only_what_is_not_installed(tmp_path: Path):
    (tmp_path / "list").write_text("# a comment\npytest>=8\nno-such-thing[x]==1.5\n\npillow\n")
    assert setup_environment.missing(["list"], tmp_path) == ["no-such-thing"]


@pytest.mark.parametrize(
    ("system", "nvidia", "configured", "override", "expected"),
    [
        ("Linux", True, False, "", [TORCH]),
        ("Linux", False, False, "", CPU),
        ("Windows", True, False, "", CUDA),
        ("Windows", False, False, "", CPU),
        ("Darwin", False, False, "", [TORCH]),
        ("Linux", False, True, "", [TORCH]),
        ("Windows", True, True, "torch --index-url x", ["torch", "--index-url", "x"]),
        ("Windows", False, False, r"C:\wheels\torch.whl", [r"C:\wheels\torch.whl"]),
        ("Linux", False, False, "'/a b/torch.whl'", ["/a b/torch.whl"]),
    ],
)
def test_torch_suits_the_machine(
    system: str, nvidia: bool, configured: bool, override: str, expected: list[str]
):
    assert torch_arguments(system, nvidia, configured, override) == expected


@pytest.mark.parametrize("module", ["lib_accel", "tests"])
def test_an_old_python_is_refused_with_its_version(root: Path, module: str):
    for file in ("__init__.py", "__main__.py"):  # an old Python must be able to parse them
        text = (root / module / file).read_text(encoding="ascii")
        ast.parse(text, feature_version=(3, 4))
        assert "__future__" not in text
    old = "import runpy, sys; sys.version_info = (3, 9, 0); sys.version = '3.9.0 (old)'; "
    command = [sys.executable, "-c", f"{old}runpy.run_module({module!r}, run_name='__main__')"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"needs? Python 3.10 or newer; .* is 3.9", done.stderr)


@pytest.mark.parametrize("options", [[], ["-S"]], ids=["with packages", "without packages"])
def test_help_installs_nothing(root: Path, options: list[str]):
    command = [sys.executable, *options, "-m", "lib_accel", "--help"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert "[set-up]" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


@pytest.mark.parametrize("options", [[], ["-S"]], ids=["with packages", "without packages"])
def test_the_webui_installs_only_small_packages_that_it_lacks(
    root: Path, tmp_path: Path, options: list[str]
):
    (tmp_path / "launch.py").write_text("def run_pip(command, what): print(command)\n")
    command = [sys.executable, *options, str(root / "install.py")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("install safetensors psutil filelock\n" if options else "")


class Project:
    """A small project with our set-up. Its requirements lie as wheels in a folder."""

    def __init__(self, folder: Path, root: Path):
        self.folder, self.venv, self.wheels = folder, folder / ".venv", folder / "wheels"
        tools = folder / "lib_accel" / "tools"
        tools.mkdir(parents=True)
        self.wheels.mkdir()
        shutil.copy(root / "lib_accel" / "tools" / "setup_environment.py", tools)
        self.make_wheel("torch", "2.13.0")
        self.make_wheel("acceltiny", "1.0")
        (folder / "run.txt").write_text("torch>=2.1\nacceltiny>=1\n")
        (folder / "more.txt").write_text("accelmore==1.5\n")
        (folder / "job.py").write_text(
            "import sys\nfrom lib_accel.tools.setup_environment import ensure\n"
            "ensure(sys.argv[1].split(','))\nimport acceltiny, torch\n"
            "print('ran', torch.__version__, sys.argv[2:])\nsys.exit(7)\n"
        )

    def make_wheel(self, name: str, version: str) -> None:
        info = f"{name}-{version}.dist-info"
        files = {
            f"{name}.py": f"__version__ = {version!r}\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(self.wheels / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            for file, text in {**files, f"{info}/RECORD": record}.items():
                wheel.writestr(file, text)

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Return status, stdout and stderr of the job. The wheels are the only packages."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "ACCEL_"))}
        pip = {"PIP_FIND_LINKS": str(self.wheels), "PIP_NO_INDEX": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "job", *arguments],
            cwd=self.folder,
            env={**kept, **pip, "PIP_CONFIG_FILE": os.devnull, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def project(tmp_path: Path, root: Path) -> Project:
    return Project(tmp_path, root)


@pytest.mark.slow
def test_a_first_run_a_second_run_and_a_new_list(project: Project):
    for name in ("pip", "venv"):  # they are not taken from the current folder
        (project.folder / f"{name}.py").write_text("1 / 0")
    status, out, err = project.run("run.txt", "two words", "--flag")
    assert (status, out) == (7, "ran 2.13.0 ['two words', '--flag']\n"), err
    for message in ("Creating ", "install torch==2.13.0\n", "Ready"):
        assert message in err
    assert project.run("run.txt", "again") == (7, "ran 2.13.0 ['again']\n", "")

    # A package that no index has: the message helps, and nothing that works is lost.
    status, _, err = project.run("run.txt,more.txt")
    assert status == 1
    assert "No matching distribution" in err  # pip's own words
    for advice in ("Set-up failed", "HTTPS_PROXY", "PIP_FIND_LINKS", "10 GB", "ACCEL_TORCH"):
        assert advice in err
    assert project.run("run.txt")[0] == 7
    project.make_wheel("accelmore", "1.5")
    status, _, err = project.run("run.txt,more.txt")
    assert status == 7
    assert "Creating" not in err
    assert "install torch" not in err

    # A list that has changed is installed again.
    project.make_wheel("accelmore", "1.6")
    (project.folder / "more.txt").write_text("accelmore==1.6\n")
    assert "accelmore-1.6" in project.run("run.txt,more.txt")[2]
    assert project.run("run.txt,more.txt") == (7, "ran 2.13.0 []\n", "")


@pytest.mark.slow
def test_another_torch_can_be_chosen_and_the_choice_stays(project: Project):
    status, _, err = project.run("run.txt", ACCEL_TORCH="torch==9.9")
    assert status == 1
    assert "pip install torch==9.9" in err
    status, _, err = project.run("run.txt", ACCEL_TORCH="'torch==2.12.0")
    assert (status, "Traceback" in err) == (1, False)
    assert "Set-up failed: No closing quotation" in err
    project.make_wheel("torch", "2.12.0")
    assert project.run("run.txt", ACCEL_TORCH="torch==2.12.0")[1] == "ran 2.12.0 []\n"
    assert project.run("run.txt") == (7, "ran 2.12.0 []\n", "")


@pytest.mark.slow
def test_a_killed_set_up_is_continued(project: Project):
    # as a kill leaves the environment before there is pip in it
    command = [sys.executable, "-m", "venv", "--without-pip", str(project.venv)]
    subprocess.run(command, check=True)
    (project.folder / MARK).touch()
    status, _, err = project.run("run.txt")
    assert status == 7, err
    assert "Creating" in err

    (info,) = project.venv.glob("[lL]ib/**/acceltiny-1.0.dist-info")
    for file in (info.parent / "acceltiny.py", info / "INSTALLER"):  # as a killed pip leaves it
        file.unlink()
    os.utime(project.folder / MARK, (0, 0))
    status, _, err = project.run("run.txt")
    assert status == 7, err
    assert "Creating" not in err
    assert "install torch" not in err


def test_a_folder_of_somebody_else_is_left_alone(project: Project):
    project.venv.mkdir()
    (project.venv / "mine.txt").write_text("keep")
    status, _, err = project.run("run.txt")
    assert status == 1
    assert "was not made by this set-up" in err
    assert [path.name for path in project.venv.iterdir()] == ["mine.txt"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C cannot be sent to one process alone here")
def test_an_interrupt_ends_the_set_up_and_all_that_it_started(project: Project):
    command = [sys.executable, "-m", "job", "run.txt"]
    process = subprocess.Popen(command, cwd=project.folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "Creating" in process.stderr.readline()
    started: list[psutil.Process] = []
    while len(started) < 2:  # venv, and the pip that it starts
        time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, "Traceback" in err) == (130, False)
    assert "Run the same command again to continue" in err
    _, left = psutil.wait_procs(started, 5)
    assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE] == []
    assert project.run("run.txt")[0] == 7, "it is continued"
