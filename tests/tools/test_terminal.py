"""What a person sees, answers and interrupts, in a real terminal."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch import Tensor

from lib_accel.store import ArtifactStore
from lib_accel.tools import terminal
from lib_accel.tools.cli.common import follow

from .checkpoint_files import write
from .commands import Run
from .terminal import Terminal

pytestmark = pytest.mark.skipif(os.name != "posix", reason="this system has no pseudo-terminals")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """A store with one unit."""
    store = ArtifactStore(tmp_path / "store")
    (tmp_path / "unit.so").write_bytes(b"native code" * 100)
    machine = {"device_name": "Test GPU", "torch": "2.13.0"}
    recipe = {"unit": {"layer": "Output"}, "dtype": "float16", "machine": machine}
    store.put(recipe, {"data/unit.so": tmp_path / "unit.so"})
    return store


@pytest.mark.parametrize("action", ["clear", "delete"])
def test_removing_asks_and_only_yes_is_yes(
    root: Path, tmp_path: Path, store: ArtifactStore, action: str
) -> None:
    key = [store.list()[0].key[:9]] if action == "delete" else []
    for answer, status in (("n\n", 1), ("\n", 1), ("\x04", 1), ("yes\n", 0)):
        assert len(store.list()) == 1
        there = Terminal(root, "store", action, *key, "--store", store.root, folder=tmp_path)
        there.wait_for(f"Remove 1 unit, 0.0 MiB, of {store.root}? [y/N] ")
        there.type(answer)
        assert there.end() == status
        assert ("nothing was removed" in there.text) == bool(status)
    assert store.list() == []


DEAF_TORCH = """
import time
print("importing torch", flush=True)
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
"""


def test_an_interrupt_is_not_lost_in_an_import(root: Path, tmp_path: Path) -> None:
    """In torch's, a KeyboardInterrupt is lost or prints a traceback."""
    (tmp_path / "torch.py").write_text(DEAF_TORCH)
    there = Terminal(root, "store", "list", folder=tmp_path, PYTHONPATH=str(tmp_path))
    there.wait_for("importing torch")
    there.type("\x03")
    assert there.end() == 130
    assert there.text.splitlines()[-1].endswith("interrupted")
    assert "Traceback" not in there.text


def test_an_interrupt_at_a_question_ends_the_command(
    root: Path, tmp_path: Path, store: ArtifactStore
) -> None:
    there = Terminal(root, "store", "clear", "--store", store.root, folder=tmp_path)
    there.wait_for("[y/N] ")
    there.type("\x03")
    assert there.end() == 130
    assert "Traceback" not in there.text
    assert len(store.list()) == 1


def test_an_interrupt_ends_the_webuis_too(
    root: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    webui = tmp_path / "webui"
    webui.mkdir()
    shutil.copy(Path(__file__).with_name("standin_webui.py"), webui / "launch.py")
    model = write(tmp_path / "model.safetensors", weights)
    arguments = ("--webui", webui, "--checkpoint", model)
    there = Terminal(
        root, "cost", *arguments, "--python", sys.executable, "--pictures", 1000, folder=tmp_path
    )
    there.wait_for("making pictures")
    assert there.left(), "the WebUIs run"
    there.type("\x03")
    assert there.end() == 130
    assert "Traceback" not in there.text
    assert there.left() == []


@pytest.mark.slow
@pytest.mark.usefixtures("packaging")
@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_an_interrupt_ends_the_compilers(root: Path, tmp_path: Path, seconds: float) -> None:
    folders = ("--store", tmp_path / "store")
    there = Terminal(
        root, "prebuild", "--family", "sd1:32", "--device", "cpu", *folders, folder=tmp_path
    )
    there.wait_for("0%|")
    time.sleep(seconds)
    there.type("\x03")
    assert there.end() == 130
    assert there.text.splitlines()[-1] == "interrupted"
    assert "Traceback" not in there.text
    assert there.left() == []


def interrupted(code: str) -> subprocess.CompletedProcess[str]:
    """Run code that calls `press` for Ctrl-C."""
    start = (
        "import os, signal, time\nfrom lib_accel.tools import terminal\n"
        "def press(): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1)\n"
        "terminal.end_on_interrupt()\n"
    )
    command = [sys.executable, "-c", start + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_what_is_interrupted_cleans_up_however_the_interrupt_is_lost() -> None:
    code = (
        "try:\n  with terminal.unwinding():\n    try: press()\n    except BaseException: pass\n"
        "    print('went on', flush=True)\nexcept KeyboardInterrupt: print('noticed')\n"
    )
    assert interrupted(code).stdout == "went on\nnoticed\n"


@pytest.mark.parametrize("again", ["press()", "time.sleep(60)"])
def test_what_does_not_end_is_ended_with_its_children(again: str) -> None:
    """At the second Ctrl-C, or after a while."""
    code = (
        "import psutil, subprocess, sys\nterminal.UNWIND_S = 1\nwith terminal.unwinding():\n"
        "  try:\n    child = subprocess.Popen([sys.executable, '-c', 'input()'], "
        "stdin=subprocess.PIPE, start_new_session=True)\n    print(child.pid, flush=True)\n"
        f"    press()\n  finally:\n    {again}\n    print('not ended')\n"
    )
    done = interrupted(code)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    (pid,) = done.stdout.split()
    end = time.monotonic() + 20
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize("command", ["--help", "bench --help", "doctor --json --device cpu", "fly"])
def test_a_reader_that_goes_away_is_no_error(root: Path, command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    streams = {"stdout": writing, "stderr": subprocess.PIPE}
    if command == "fly":
        streams = {"stdout": subprocess.PIPE, "stderr": writing}
    program = [sys.executable, "-m", "lib_accel", *command.split()]
    done = subprocess.run(program, cwd=root, text=True, **streams)
    os.close(writing)
    assert (done.stdout or "") + (done.stderr or "") == ""
    assert done.returncode == 141


class Halfway:
    """A job that ends after some waiting."""

    def __init__(self, waits: int):
        self.waits = waits

    def wait(self, seconds: float) -> bool:
        self.waits -= 1
        return self.waits < 0

    def progress(self) -> object:
        fields = {"fraction": 0.5, "stage": "compiling", "remaining_s": 7.0, "elapsed_s": 7.0}
        return type("Progress", (), fields)


def test_progress_in_a_file_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    follow(Halfway(2), "SD1")  # type: ignore[arg-type]
    err = capsys.readouterr().err
    assert err == "SD1: 50 %, compiling, about 7 s left\n" * 2


def test_no_progress_bar_goes_into_a_file(run: Run, tmp_path: Path) -> None:
    bench = ("bench", "--device", "cpu", "--family", "sd1:32", "--size", 64, "--rounds", 1)
    status, _, err = run(*bench, "--variants", "eager", "--loras", "0,1", "--out", tmp_path)
    assert status == 0
    assert "\r" not in err
    assert "%|" not in err


def test_the_signal_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with terminal.unwinding():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
