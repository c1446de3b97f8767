"""The digest of the source code in every artifact's key: what changes it, and what does not."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib_accel.compile import target
from lib_accel.compile.source_digest import PACKAGE, ROOTS, digest_of, source_digest, source_files

from .. import tiny

EXPECTED = ("compile/units.py", "model/parts/cpu_operators.py", "model/layers.py")
EVERY = sorted(file.relative_to(PACKAGE).as_posix() for file in source_files(PACKAGE))

IMPORTED = """
import json, sys
import {root}
print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.startswith("lib_accel.")]))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of lib_accel, which a test may change."""
    return Path(
        shutil.copytree(
            PACKAGE, tmp_path / "lib_accel", ignore=shutil.ignore_patterns("__pycache__")
        )
    )


def test_the_files_one_expects_are_in_it():
    assert set(EXPECTED) | set(ROOTS) <= set(EVERY)
    assert not {"compile/doctor.py", "compile/backends/jit.py", "compile/session.py"} & set(EVERY)


@pytest.mark.parametrize("root", ROOTS)
def test_every_module_that_python_loads_to_export_a_unit_is_in_it(root: str):
    name = "lib_accel." + root.removesuffix(".py").replace("/", ".")
    script = IMPORTED.format(root=name)
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, check=True
    )
    loaded = {Path(file).relative_to(PACKAGE).as_posix() for file in json.loads(out.stdout)}
    shaping = {name for name in loaded if name.startswith(("model/", "compile/"))}
    assert root in shaping
    assert {name for name in shaping if not name.endswith("__init__.py")} <= set(EVERY)


def test_another_digest_gives_another_key(monkeypatch: pytest.MonkeyPatch):
    before = tiny.target().key
    monkeypatch.setattr(target, "source_digest", lambda: "0" * 64)
    assert tiny.target().key != before


def test_the_digest_is_that_of_the_installed_files():
    assert source_digest() == digest_of(PACKAGE)


@pytest.mark.parametrize("name", EVERY)
def test_another_statement_gives_another_digest(package: Path, name: str):
    file = package / name
    file.write_bytes(file.read_bytes() + b"\nADDED = 1\n")
    assert digest_of(package) != source_digest()


def test_another_number_gives_another_digest(package: Path):
    file = package / "model" / "parts" / "cpu_operators.py"
    text = file.read_bytes()
    assert b"ROWS = 1024" in text
    file.write_bytes(text.replace(b"ROWS = 1024", b"ROWS = 1025"))
    assert digest_of(package) != source_digest()


def test_other_files_do_not_change_it(package: Path):
    (package / "compile" / "backends" / "jit.py").write_text("CHANGED = 1\n")
    (package / "host" / "service.py").write_text("CHANGED = 1\n")
    assert digest_of(package) == source_digest()


def test_a_file_that_is_imported_for_the_first_time_counts(package: Path):
    (package / "model" / "parts" / "kernels.py").write_text("A = 1\n")
    assert digest_of(package) == source_digest()
    file = package / "model" / "parts" / "cpu_operators.py"
    file.write_bytes(file.read_bytes() + b"\nfrom . import kernels\n")
    first = digest_of(package)
    (package / "model" / "parts" / "kernels.py").write_text("A = 2\n")
    assert digest_of(package) not in (first, source_digest())


@pytest.mark.parametrize("name", EVERY)
def test_another_format_and_no_comments_give_the_same_digest(package: Path, name: str):
    file = package / name
    text = file.read_text(encoding="utf-8")
    file.write_text("# A comment.\n" + ast.unparse(ast.parse(text)), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != text
    assert digest_of(package) == source_digest()


@pytest.mark.parametrize("name", EVERY)
def test_other_docstrings_give_the_same_digest(package: Path, name: str):
    file = package / name
    tree = ast.parse(file.read_bytes())
    count = 0
    for node in ast.walk(tree):
        constant = node.value if isinstance(node, ast.Expr) else None
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
            constant.value, count = "Reworded.", count + 1
    assert count
    file.write_text(ast.unparse(tree), encoding="utf-8")
    assert digest_of(package) == source_digest()


def test_a_docstring_more_or_less_gives_the_same_digest(package: Path):
    file = package / "model" / "parts" / "cpu_operators.py"
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if ast.get_docstring(node) is None:
                node.body.insert(0, ast.Expr(ast.Constant("New.")))
            elif len(node.body) > 1:
                del node.body[0]
    file.write_text(ast.unparse(ast.fix_missing_locations(tree)), encoding="utf-8")
    assert digest_of(package) == source_digest()


def test_a_missing_file_is_an_error(package: Path):
    (package / ROOTS[0]).unlink()
    with pytest.raises(FileNotFoundError, match="units"):
        digest_of(package)


def test_code_with_another_digest_is_from_another_version():
    here = tiny.target()
    recipe = here.recipe(here.units[0])
    assert here.incompatibility(recipe) is None
    other = here.incompatibility({**recipe, "source": "0" * 64})
    assert other == "another version of this extension"
