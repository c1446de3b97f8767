"""What must be installed: the lists in pyproject.toml, which of them are missing, which torch suits a machine, what pip meant.

Standard library only, nothing is done here. Used by bootstrap.py on a fresh machine and by install.py in the WebUI.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

TORCH = "torch==2.13.0"  # the version the tests run with
TORCH_INDEX = "https://download.pytorch.org/whl/"
CUDA_INDEX = TORCH_INDEX + "cu130"
CPU_INDEX = TORCH_INDEX + "cpu"

NETWORK = r"NameResolution|getaddrinfo|name resolution|new connection|Connection refused|Max retries|[Tt]imed out|ProxyError|Retrying"
HINTS = (  # what pip wrote -> what to do; the first that fits
    (
        r"No space left|Errno 28|not enough space",
        "The disk is full: free some space (about 3 GB, 10 GB with CUDA).",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "A certificate was refused: set PIP_CERT to your organisation's certificate file.",
    ),
    (
        NETWORK,
        "The package index cannot be reached: check the network; behind a proxy set HTTPS_PROXY; without a network put "
        "the wheels in a folder and set PIP_FIND_LINKS to it.",
    ),
    (
        r"Permission denied|Errno 13|Read-only file system|WinError 5",
        "Files here cannot be written: check the rights of this folder.",
    ),
    (
        r"No matching distribution|Could not find a version",
        "There is no such package for this Python and machine (or no index was reached). Python 3.10 to 3.13 on 64 bits is "
        "the safe choice; ACCEL_TORCH names another torch, e.g. ACCEL_TORCH=torch==2.5.1.",
    ),
)

IMPORT_NAMES = {"pillow": "PIL"}  # where the import name is not the distribution's
_LINE = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*)(\[[A-Za-z0-9,_-]+\])?(?:(>=|==)([0-9][A-Za-z0-9.+]*))?"
)
_ARRAY = r'^{key}\s*=\s*(\[(?:"[^"\n]*"|#[^\n]*|[^\]"#])*\])'


class Requirement(NamedTuple):
    """`name[extras]>=version`, as the lists in pyproject.toml are written."""

    text: str
    name: str
    relation: str  # ">=", "==" or "" for any version
    version: str

    @classmethod
    def parse(cls, text: str) -> Requirement:
        found = _LINE.fullmatch(text.strip())
        if not found:
            raise ValueError(
                f"pyproject.toml has the requirement {text!r}; expected NAME[EXTRAS], then at most one of >= or =="
            )
        name, _, relation, version = found.groups()
        return cls(text.strip(), name.lower(), relation or "", version or "")

    def admits(self, version: str) -> bool:
        """Whether an installed version will do; a local part such as +cpu does not count."""
        if self.relation == "==":
            return _release(version) == _release(self.version)
        return not self.relation or _release(version) >= _release(self.version)

    def installed(self) -> bool:
        """Whether this interpreter has it; imports nothing."""
        try:
            version = importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            # Built from source or packed by hand: there, but nobody says which version.
            return (
                importlib.util.find_spec(IMPORT_NAMES.get(self.name, self.name.replace("-", "_")))
                is not None
            )
        return bool(version) and self.admits(version)  # a half-removed distribution answers None


def _release(version: str) -> tuple[int, ...]:
    """2.13.0+cpu -> (2, 13)"""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers.group().split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def read_lists(pyproject: Path) -> dict[str, list[Requirement]]:
    """The requirement lists by group: "run", and each optional one by its name.

    Read without a TOML library, which Python 3.10 lacks: an array of plain strings with comments is also Python.
    """
    text = pyproject.read_text(encoding="utf-8")
    lists = {"run": _array(_section(text, "project"), "dependencies")}
    optional = _section(text, "project.optional-dependencies")
    for key in re.findall(r"^([A-Za-z0-9_-]+)\s*=", optional, re.MULTILINE):
        lists[key] = _array(optional, key)
    return {
        group: [Requirement.parse(entry) for entry in entries] for group, entries in lists.items()
    }


def _section(text: str, name: str) -> str:
    found = re.search(
        rf"^\[{re.escape(name)}\][^\n]*\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL
    )
    return found.group(1) if found else ""


def _array(section: str, key: str) -> list[str]:
    found = re.search(_ARRAY.format(key=re.escape(key)), section, re.MULTILINE)
    return ast.literal_eval(found.group(1)) if found else []


def missing(wanted: Iterable[Requirement]) -> list[Requirement]:
    """Those this interpreter does not have, or has too old."""
    return [requirement for requirement in wanted if not requirement.installed()]


class Attempt(NamedTuple):
    """One way to install torch: arguments for `pip install`, and the words for it."""

    arguments: tuple[str, ...]
    why: str


def torch_attempts(
    system: str, nvidia: bool, own_source: str = "", override: str = ""
) -> list[Attempt]:
    """How to install torch on this machine, best first.

    system: platform.system(). own_source: the pip setting that names an index or wheel folder, if there is one.
    override: ACCEL_TORCH, the whole of what pip is given.
    """
    if override.strip():
        return [
            Attempt(tuple(shlex.split(override, posix=system != "Windows")), "as ACCEL_TORCH says")
        ]
    if own_source:
        note = (
            f". For CUDA set ACCEL_TORCH to: {TORCH} --index-url {CUDA_INDEX}"
            if nvidia and system == "Windows"
            else ""
        )
        return [Attempt((TORCH,), f"from where pip is set to look ({own_source}){note}")]
    plain = Attempt((TORCH,), "from PyPI")
    if system == "Darwin":
        return [plain]
    if nvidia and system != "Windows":
        return [
            Attempt((TORCH,), "from PyPI, for the NVIDIA GPU found (a download of some gigabytes)")
        ]
    if nvidia:
        first = Attempt(
            (TORCH, "--index-url", CUDA_INDEX),
            f"from {CUDA_INDEX}, for the NVIDIA GPU found (some gigabytes)",
        )
        return [
            first,
            Attempt((TORCH,), "from PyPI instead, which on Windows has it for the CPU only"),
        ]
    first = Attempt(
        (TORCH, "--index-url", CPU_INDEX),
        f"from {CPU_INDEX}, for the CPU as no NVIDIA GPU was found",
    )
    return [
        first,
        plain._replace(why="from PyPI instead (on Linux a download of some gigabytes, with CUDA)"),
    ]


def pip_own_source(settings: Mapping[str, str]) -> str:
    """The setting that says where pip looks, if the user made one; settings as `pip config list` names them."""
    for key, value in settings.items():
        option = key.rsplit(".", 1)[-1]
        if option in ("index-url", "extra-index-url", "find-links", "no-index") and value not in (
            "",
            "0",
            "false",
        ):
            return f"{option} = {value}"
    return ""


def parse_pip_settings(text: str) -> dict[str, str]:
    """`pip config list` -> {"global.index-url": "..."}"""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip().strip("'\"") for key, _, value in pairs}


def explain(complaints: str) -> str:
    """What to do about what pip or venv wrote."""
    return next((hint for pattern, hint in HINTS if re.search(pattern, complaints)), "")
