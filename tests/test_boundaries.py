"""What lib_accel may import, what importing it may change, and how large its parts may be.

Each probe of imports runs in a fresh Python, over all modules of the package. For each rule a
second test plants a violation and sees it found.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import layout

HOST_SIDE = "lib_accel.host"
# Imported nowhere outside the host side, not even inside a function.
NEVER = ("modules", "gradio", "launch", HOST_SIDE)
NOT_AT_IMPORT = (
    "diffusers",
    "transformers",
    "ldm",
    "sgm",
    "openvino",
    "tensorrt",
    "torch_tensorrt",
    "cryptography",
    "s3fs",
)

IMPORT_PROBE = """
import importlib, json, sys

never, not_at_import, names = json.loads(sys.argv[1])
asked = {}

class Watch:  # sees each request, also for what is not installed or inside a try
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
        "default device": str(getattr(torch, "get_default_device", str)()),
        "grad enabled": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cuda tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": [getattr(torch.backends.cudnn, n)
                  for n in ("enabled", "benchmark", "deterministic", "allow_tf32")],
        "mkldnn": torch.backends.mkldnn.enabled,
        "sdp": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(),
                torch.backends.cuda.mem_efficient_sdp_enabled()],
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
changed = [key for key in before if before[key] != after[key]]
print(json.dumps([f"{key}: {before[key]} became {after[key]}" for key in changed]))
"""


def core(root: Path) -> list[str]:
    """Return the modules of lib_accel but its host side and what runs when it is imported."""
    names = (name for name in layout.modules(root) if not name.endswith("__main__"))
    return [name for name in names if not (name + ".").startswith(HOST_SIDE + ".")]


def written_imports(root: Path) -> list[str]:
    """Return the imports of NEVER in the core, wherever they are written."""
    files = layout.modules(root)
    return [
        f"{name}:{line} imports {target}"
        for name in core(root)
        for line, target in layout.imports(name, files[name])
        if any((target + ".").startswith(never + ".") for never in NEVER)
    ]


def probe(root: Path, script: str, *arguments: object) -> list[str]:
    """Return what the script finds in a fresh Python that imports the lib_accel of `root`."""
    command = [sys.executable, "-c", script, *(json.dumps(argument) for argument in arguments)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def wrong_imports(root: Path) -> list[str]:
    return probe(root, IMPORT_PROBE, [NEVER, NOT_AT_IMPORT, core(root)])


def changed_state(root: Path) -> list[str]:
    return probe(root, STATE_PROBE, core(root))


@pytest.fixture
def spoilt(root: Path, tmp_path: Path) -> Path:
    """A copy of the package with files that break the rules."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "lib_accel", tmp_path / "lib_accel", ignore=ignore)
    (tmp_path / "lib_accel" / "zz_leak.py").write_text(
        "import os\nimport torch\ntry:\n    import gradio\nexcept ImportError:\n    pass\n"
        "torch.backends.cudnn.benchmark = True\n"
        "torch.set_num_threads(1 + torch.get_num_threads())\nos.environ['LEAK'] = '1'\n"
    )
    (tmp_path / "lib_accel" / "zz_late.py").write_text(
        "def late():\n    from modules import shared\n    from . import host\n"
        "    from .host import door\n    return shared, host, door\n"
    )
    return tmp_path


def test_the_core_is_all_but_the_host_side(root: Path):
    names = core(root)
    expected = {"lib_accel", "lib_accel.tools.setup_environment", "lib_accel.model.unet"}
    assert expected <= set(names)
    assert not [name for name in names if name.startswith(HOST_SIDE)]


def test_the_core_imports_no_webui_and_nothing_optional(root: Path):
    assert wrong_imports(root) == []


def test_the_core_has_no_webui_import_in_any_function(root: Path):
    assert written_imports(root) == []


def test_importing_changes_no_global_state(root: Path):
    assert changed_state(root) == []


def test_a_gradio_import_inside_a_try_is_found(spoilt: Path):
    assert wrong_imports(spoilt) == ["lib_accel.zz_leak imports gradio"]


def test_an_import_inside_a_function_is_found(spoilt: Path):
    assert written_imports(spoilt) == [
        "lib_accel.zz_late:2 imports modules.shared",
        "lib_accel.zz_late:3 imports lib_accel.host",
        "lib_accel.zz_late:4 imports lib_accel.host.door",
        "lib_accel.zz_leak:4 imports gradio",
    ]


def test_changed_flags_are_found(spoilt: Path):
    keys = {line.partition(":")[0] for line in changed_state(spoilt)}
    assert keys == {"cudnn", "threads", "environment"}


@pytest.mark.parametrize("module", ["lib_accel", "lib_accel.tools.setup_environment"])
def test_the_set_up_is_imported_without_any_package(root: Path, module: str):
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-S", "-W", "error", "-c", code], cwd=root, check=True)


@pytest.mark.parametrize(
    "violations",
    [
        layout.upward_imports,
        layout.circular_imports,
        layout.crowded_folders,
        layout.long_files,
        layout.long_functions,
    ],
)
def test_the_layout_keeps_its_rules(root: Path, violations: Callable[[Path], list[str]]):
    found = violations(root)
    assert not found, "\n".join(found)


def plant(root: Path, **texts: str) -> Path:
    """Write modules of lib_accel; `compile__jit="..."` writes compile/jit.py."""
    for name, text in texts.items():
        file = (root / "lib_accel").joinpath(*name.split("__")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for folder in file.parents[: len(file.relative_to(root).parts) - 1]:
            (folder / "__init__.py").touch()
    return root


def test_an_upward_import_is_found_in_a_function_too(tmp_path: Path):
    later = "def later():\n    from ..runtime import engine\n    from ..store import seal\n"
    planted = plant(
        tmp_path,
        runtime__engine="from ..errors import AccelError\nfrom .. import __version__\n",
        compile__jit=later,
        store__seal="if TYPE_CHECKING:\n    import lib_accel.config\n",
        errors="from .config import Config\n",
        config="",
    )
    assert layout.upward_imports(planted) == [
        "lib_accel.compile.jit:2 imports lib_accel.runtime.engine",
        "lib_accel.errors:1 imports lib_accel.config",
    ]


def test_only_the_command_line_may_import_tools(tmp_path: Path):
    planted = plant(
        tmp_path,
        host__page="from ..tools import cli\nfrom ..runtime import engine\n",
        tools__cli="from ..host.page import Page\n",
        runtime__engine="from ..tools.cli import main\n",
    )
    (planted / "lib_accel" / "__main__.py").write_text("from lib_accel.tools import cli\n")
    (planted / "lib_accel" / "__init__.py").write_text(
        "def accelerate():\n    from .runtime import engine\n    from .host import page\n"
    )
    assert layout.upward_imports(planted) == [
        "lib_accel:3 imports lib_accel.host.page",
        "lib_accel.host.page:1 imports lib_accel.tools.cli",
        "lib_accel.runtime.engine:1 imports lib_accel.tools.cli",
        "lib_accel.tools.cli:1 imports lib_accel.host.page",
    ]


def test_a_folder_without_a_floor_is_found(tmp_path: Path):
    planted = plant(tmp_path, attic__box="from ..model import unet\n", model__unet="")
    assert layout.upward_imports(planted) == ["lib_accel.attic.box:1 ['attic'] has no floor"]


def test_a_circle_of_imports_is_found_with_its_way(tmp_path: Path):
    planted = plant(
        tmp_path,
        tools__demo="from .report import write\n",
        tools__report="from .picture import Picture\n",
        tools__picture="if TYPE_CHECKING:\n    from . import demo\n",
        tools__other="from . import demo\n",
    )
    a, b, c = (f"lib_accel.tools.{name}" for name in ("demo", "picture", "report"))
    assert layout.circular_imports(planted) == [
        f"{a} imports {c} imports {b} imports {a}",
        f"{b} imports {a} imports {c} imports {b}",
        f"{c} imports {b} imports {a} imports {c}",
    ]


def test_a_crowded_folder_a_long_file_and_a_long_function_are_found(tmp_path: Path):
    (tmp_path / "tests" / "__pycache__").mkdir(parents=True)
    planted = plant(tmp_path, **{f"model__m{number}": "" for number in range(11)})
    (planted / "lib_accel" / "__pycache__").mkdir()
    for number in range(8):
        (planted / "lib_accel" / f"text{number}").touch()
    assert layout.crowded_folders(planted) == []
    plant(planted, model__long="def f():\n" + "    pass\n" * 49 + "\n" * 250, errors="")
    assert layout.crowded_folders(planted) == [
        "lib_accel has 11 entries, 10 are allowed",
        "lib_accel/model has 13 entries, 12 are allowed",
    ]
    assert layout.long_files(planted) + layout.long_functions(planted) == []
    (planted / "tests" / "test_x.py").write_text("class C:\n  def f():\n" + "    pass\n" * 50)
    plant(planted, model__long="\n" * 301)
    assert layout.long_files(planted) == ["lib_accel/model/long.py has 301 lines"]
    assert layout.long_functions(planted) == ["tests/test_x.py:2 f has 51 lines"]
