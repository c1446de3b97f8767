"""The core stands alone: no WebUI, no gradio, nothing optional at import, and importing it changes nothing.

Each probe runs in a fresh interpreter; the list of modules is walked, so new files are held to it too. For every rule a
second test plants a file that breaks it and sees it caught.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOST_SIDE = "lib_accel.host"
NEVER = (
    "modules",
    "gradio",
    "launch",
    HOST_SIDE,
)  # in no place of the core, not even inside a function
NOT_AT_IMPORT = (
    "diffusers",
    "transformers",
    "ldm",
    "sgm",
    "openvino",
    "tensorrt",
    "torch_tensorrt",
    "matplotlib.pyplot",
)

IMPORT_PROBE = """
import importlib, json, sys

never, not_at_import, names = json.loads(sys.argv[1])
asked = {}

class Watch:  # sees what is asked for, also what is not installed and what a try hides
    @staticmethod
    def find_spec(name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in never):
            asked.setdefault(name, current)

sys.meta_path.insert(0, Watch)
found = []
for current in names:
    try:
        importlib.import_module(current)
    except ImportError as error:
        found.append(f"{current}: {error}")
    for name in not_at_import:
        if name in sys.modules and name not in asked:
            asked[name] = current
print(json.dumps(found + [f"{importer} imports {name}" for name, importer in asked.items()]))
"""

STATE_PROBE = """
import importlib, json, logging, os, signal, sys, warnings
import torch

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()) if hasattr(torch, "get_default_device") else "",
        "grad enabled": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cuda tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": [getattr(torch.backends.cudnn, n) for n in ("enabled", "benchmark", "deterministic", "allow_tf32")],
        "mkldnn": torch.backends.mkldnn.enabled,
        "sdp": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
                torch.backends.cuda.math_sdp_enabled()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cuda initialised": torch.cuda.is_initialized(),
        "random state": hash(torch.random.get_rng_state().numpy().tobytes()),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "root logging": [logging.root.level, len(logging.root.handlers)],
        "interrupt": str(signal.getsignal(signal.SIGINT)),
        "recursion limit": sys.getrecursionlimit(),
    }

before = state()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
after = state()
print(json.dumps([f"{key}: {before[key]} became {after[key]}" for key in before if before[key] != after[key]]))
"""


def core_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of lib_accel but its host side and what runs when imported."""
    for file in sorted((root / "lib_accel").rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if parts[-1] != "__main__" and not (name + ".").startswith(HOST_SIDE + "."):
            yield name, file


def written_imports(root: Path) -> list[str]:
    """Imports of what the core never uses, wherever they are written, functions included."""
    found = []
    for name, file in core_files(root):
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found += [
                    f"{name}:{node.lineno} imports {target}"
                    for target in imported(node, package)
                    if forbidden(target)
                ]
    return found


def imported(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """The absolute names an import statement in `package` may bring in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*above, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def forbidden(target: str) -> bool:
    return any((target + ".").startswith(name + ".") for name in NEVER)


def probe(root: Path, script: str, *arguments: object) -> list[str]:
    """What the script, in a fresh interpreter that finds `root`'s lib_accel, complains of."""
    command = [sys.executable, "-c", script, *(json.dumps(argument) for argument in arguments)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def wrong_imports(root: Path) -> list[str]:
    return probe(root, IMPORT_PROBE, [NEVER, NOT_AT_IMPORT, [name for name, _ in core_files(root)]])


def changed_state(root: Path) -> list[str]:
    return probe(root, STATE_PROBE, [name for name, _ in core_files(root)])


@pytest.fixture
def spoilt(root: Path, tmp_path: Path) -> Path:
    """A copy of the package with files that break the rules."""
    shutil.copytree(
        root / "lib_accel", tmp_path / "lib_accel", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "lib_accel" / "zz_leak.py").write_text(
        "import os\nimport torch\ntry:\n    import gradio\nexcept ImportError:\n    pass\n"
        "torch.backends.cudnn.benchmark = True\ntorch.set_num_threads(1 + torch.get_num_threads())\nos.environ['LEAK'] = '1'\n"
    )
    (tmp_path / "lib_accel" / "zz_late.py").write_text(
        "def late():\n    from modules import shared\n    from . import host\n    from .host import door\n    return shared, host, door\n"
    )
    return tmp_path


def test_the_walk_sees_the_core(root: Path):
    names = [name for name, _ in core_files(root)]
    assert {"lib_accel", "lib_accel.tools.bootstrap", "lib_accel.model.unet"} <= set(names)
    assert not [name for name in names if name.startswith(HOST_SIDE)]


def test_core_imports_no_webui_and_nothing_optional(root: Path):
    assert wrong_imports(root) == []


def test_core_has_no_webui_import_in_any_function(root: Path):
    assert written_imports(root) == []


def test_importing_changes_no_global_state(root: Path):
    assert changed_state(root) == []


def test_a_guarded_gradio_import_is_caught(spoilt: Path):
    assert wrong_imports(spoilt) == ["lib_accel.zz_leak imports gradio"]


def test_an_import_inside_a_function_is_caught(spoilt: Path):
    assert written_imports(spoilt) == [
        "lib_accel.zz_late:2 imports modules.shared",
        "lib_accel.zz_late:3 imports lib_accel.host",
        "lib_accel.zz_late:4 imports lib_accel.host.door",
        "lib_accel.zz_leak:4 imports gradio",
    ]


def test_changed_flags_are_caught(spoilt: Path):
    keys = {line.partition(":")[0] for line in changed_state(spoilt)}
    assert keys == {"cudnn", "threads", "environment"}


@pytest.mark.parametrize(
    "module", ["lib_accel", "lib_accel.tools.bootstrap", "lib_accel.tools.requirements"]
)
def test_imported_without_site_packages(root: Path, module: str):
    """The package itself and what sets it up need the standard library alone (-S: no site-packages)."""
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-S", "-W", "error", "-c", code], cwd=root, check=True)
