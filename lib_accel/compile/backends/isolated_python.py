"""Start Python so that it runs the code that this process runs, and nobody else's.

Started as usual, Python looks for modules in the current folder and where environment variables
say. If that is a shared temporary folder, other users can have put some there. Only the standard
library is imported here: a worker needs this in its last moment.
"""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import stat
import sys
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parents[3]
"""The folder that holds `lib_accel`."""

# what `-m` does, on the path and with the module that the arguments name
_RUN = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)

_KEPT = ("PYTHONUTF8", "PYTHONIOENCODING")
"""Python's variables that say how text is read; the others are kept from child processes."""


def python_command(module: str, *arguments: object) -> list[str]:
    """Return the command that runs `module` with `arguments` as `python -m` does, but isolated."""
    utf8 = ["-X", "utf8"] if sys.flags.utf8_mode else []  # isolated, it reads no PYTHONUTF8
    start = [sys.executable, "-I", "-u", *utf8, "-c", _RUN, json.dumps(trusted_path())]
    return [*start, module, *map(str, arguments)]


def python_environment() -> dict[str, str]:
    """Return the environment for `python_command`: this process's, without Python's places."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") or k in _KEPT}
    return kept | isolating_variables() | naming_variables()


def isolating_variables() -> dict[str, str]:
    """Return the variables that isolate the Python processes that torch starts by itself."""
    path = os.pathsep.join(trusted_path())
    return {"PYTHONSAFEPATH": "1", "TORCH_CUSTOM_PYTHONPATH": path}


def naming_variables() -> dict[str, str]:
    """Return a name for a user who has none, as in many containers: torch asks for one."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # which of them depends on Python and the system
        return {"LOGNAME": "nobody"}
    return {}


def trusted_path() -> list[str]:
    """Return where this process finds modules, in its order, after this package.

    What depends on the current folder is left out, and what everybody can write into. The folders
    of Python and torch stay in any case, since this process itself runs from them.
    """
    torch = importlib.util.find_spec("torch")
    homes = [Path(sys.prefix), Path(sys.base_prefix)]
    if torch and torch.origin:
        homes.append(Path(torch.origin).parents[1])
    kept = [str(PACKAGE_ROOT)]
    for entry in map(Path, sys.path):
        is_home = any(entry.is_relative_to(home) for home in homes)
        if entry.is_absolute() and (is_home or _is_closed(entry)):
            kept.append(str(entry))
    return list(dict.fromkeys(kept))


def _is_closed(entry: Path) -> bool:
    """Whether it exists and not everybody can put modules into it, or replace it."""
    path = Path(os.path.realpath(entry))
    try:
        mode, *above = (folder.stat().st_mode for folder in (path, *path.parents))
    except OSError:  # what does not exist, others may make
        return False
    if sys.platform == "win32":
        return True
    replaceable = any(each & stat.S_IWOTH and not each & stat.S_ISVTX for each in above)
    return not (replaceable or mode & stat.S_IWOTH)
