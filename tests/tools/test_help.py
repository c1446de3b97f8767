"""Help comes at once, fits the terminal, and names the program as it was called."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lib_accel.compile import session
from lib_accel.config import AUTO
from lib_accel.tools.bench import variants
from lib_accel.tools.cli.arguments import common
from lib_accel.tools.setup_environment import is_own_environment

from .commands import Run

COMMANDS = (
    *("", "demo", "bench", "gpu", "cost", "prebuild", "doctor", "store"),
    *(f"store {a}" for a in ("list", "verify", "delete", "clear", "export", "import", "key")),
)
HEAVY = ("torch", "numpy", "tqdm", "safetensors", "psutil", "matplotlib")

PROBE = f"""
import runpy, sys
try:
    runpy.run_module("lib_accel", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code, [name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize(
    "arguments", ["", "--version", "store", *(f"{c} --help" for c in COMMANDS)]
)
def test_help_imports_nothing_that_takes_time(root: Path, arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments.split()], cwd=root, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_without_a_command_the_help_is_printed(run: Run) -> None:
    assert run() == run("--help")
    assert run("store") == run("store", "--help")
    assert "prebuild" in run()[1]


@pytest.mark.parametrize("columns", [40, 80, 150])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_terminal_and_breaks_no_word(
    run: Run, command: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEL_STORE", "/a/folder/whose-name-is-far-longer-than-a-column/of-help")
    monkeypatch.setenv("COLUMNS", "1000")
    words = set(run(*command.split(), "--help")[1].split())
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run(*command.split(), "--help")[1]
    assert set(text.split()) - words <= {"\\"}
    long = [line for line in text.splitlines() if len(line) > columns and len(line.split()) > 1]
    assert not long


def test_only_commands_are_continued_by_a_backslash(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = run("bench", "--help")[1].partition("examples:\n")[0]
    assert "\\\n" not in text
    assert "(pip install tensorrt_rtx)" in " ".join(text.split())


def test_a_wrapped_example_can_be_pasted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def examples(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        text = run("bench", "--help")[1].partition("examples:\n")[2].partition("\n\n")[0]
        return shlex.split(text.replace("\\\n", ""))

    assert examples(40) == examples(1000)


def test_usage_names_the_program_as_it_was_called(root: Path) -> None:
    def usage(program: str, folder: Path) -> str:
        done = subprocess.run(
            [*shlex.split(program), "doctor", "--help"], cwd=folder, capture_output=True, text=True
        )
        return done.stdout.splitlines()[0]

    plain = sys.prefix == sys.base_prefix or is_own_environment(root)
    for program, folder in (
        (f"{sys.executable} -m lib_accel", root),
        (f"{sys.executable} {root / 'lib_accel'}", Path("/")),
        (f"{sys.executable} -W error lib_accel/__main__.py", root),
    ):
        shown = f"python3 {program.partition(' ')[2]}" if plain else program
        assert f"usage: {shown} doctor " in usage(program, folder) + " "


def test_no_message_advises_to_call_a_function(root: Path) -> None:
    """Whoever reads it is at a command line, or in the WebUI."""
    found = [
        text.value
        for file in (root / "lib_accel").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise)
        for text in ast.walk(node)
        if isinstance(text, ast.Constant) and re.search(r"\w\(\)", str(text.value))
    ]
    assert found == []


def test_the_choices_are_those_that_the_code_has(run: Run) -> None:
    assert (AUTO, *(b.name for b in session.BACKENDS)) == common.BACKENDS
    text = " ".join(run("bench", "--help")[1].split())
    assert not [name for name in variants.VARIANTS if name not in text]
    assert [n for n in variants.VARIANTS if n not in variants.DEFAULT] == [
        "stock+sdpa",
        "compile-max-autotune",
        "jit",
        "tensorrt",
        "tensorrt+graphs",
        "aoti+blocks",
        "eager+control",
        "aoti+control",
    ], "the help says which are left out by default"
