"""What the user wants, in one frozen object, built where options and flags are read."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

AUTO = "auto"
MIB = 1024**2

LORA_BASES = ("auto", "host", "pinned", "gpu")
"""Where base weights of layers that LoRAs touch are kept.

`gpu` is video memory, `pinned` page-locked memory, `host` ordinary memory. `auto` takes video
memory while enough of it is free, else pinned memory.
"""


_FOLDERS = {  # by system: variable and default for what can be made again, and for what cannot
    "win32": (("LOCALAPPDATA", "~/AppData/Local"), ("APPDATA", "~/AppData/Roaming")),
    "darwin": (("", "~/Library/Caches"), ("", "~/Library/Application Support")),
}
_OTHER_FOLDERS = (("XDG_CACHE_HOME", "~/.cache"), ("XDG_CONFIG_HOME", "~/.config"))


def places(given: str | None = None) -> tuple[Path, str]:
    """Return the folder of compiled code, and the URL of the remote store, "" where there is none.

    Each is what a flag has `given`, else what `ACCEL_STORE` names; the folder by default lies in
    the user's cache folder. Never a setting: whoever can change settings could have other code run.
    """
    named = [text for text in (given, os.environ.get("ACCEL_STORE")) if text]
    folders = [text for text in named if "://" not in text]
    urls = [text for text in named if "://" in text]
    return Path(folders[0] if folders else _own_folder(0)), urls[0] if urls else ""


KEY_FILES = {
    "store_key": "ACCEL_STORE_KEY_FILE",
    "trusted_keys": "ACCEL_TRUSTED_KEYS_FILE",
    "signing_key": "ACCEL_SIGNING_KEY_FILE",
}
"""Fields of the configuration that name a file of keys, and the variable that names it, too."""


def key_file(name: str, given: str | None = None) -> Path | None:
    """Return the file that a flag has `given` for a field of KEY_FILES, else its variable, or None.

    Never a setting: whoever can change settings could have other code run.
    """
    named = given or os.environ.get(KEY_FILES[name])
    return Path(os.path.expanduser(named)) if named else None  # noqa: PTH111  (never raises)


def own_key_file() -> Path:
    """Return where the user's own store key lies, far from the store: stores are passed on."""
    return _own_folder(1) / "store.key"


def own_jit_folder() -> Path:
    """Return where torch's compiler keeps its files between starts: beside the default store."""
    return _own_folder(0).with_name("sd-webui-accel-jit")


def own_times_file() -> Path:
    """Return where it is kept how long compiling takes here: beside the default store."""
    return _own_folder(0).with_name("sd-webui-accel-times.json")


def own_speeds_file() -> Path:
    """Return where it is kept how fast steps were here: beside the default store."""
    return _own_folder(0).with_name("sd-webui-accel-speeds.json")


def _own_folder(kind: int) -> Path:
    """Return this extension's folder in the user's profile. It begins with `~` where none is."""
    variable, default = _FOLDERS.get(sys.platform, _OTHER_FOLDERS)[kind]
    base = os.environ.get(variable) or os.path.expanduser(default)  # noqa: PTH111  (never raises)
    return Path(base) / "sd-webui-accel"


FETCH_S = 30.0


@dataclass(frozen=True)
class Config:
    """What the user wants. Raises ValueError when a value is out of range."""

    backend: str = AUTO  # "auto" or a backend's name
    store: Path = field(default_factory=lambda: places()[0])  # folder of compiled code
    remote: str = field(default_factory=lambda: places()[1])  # URL of a store that machines share
    fetch_s: float = FETCH_S  # how long compiling waits for the remote store
    store_bytes: int = 2048 * MIB  # largest size of that folder
    store_readonly: bool = False
    # files: the store key (None: the user's own), public keys that are trusted, a private key
    store_key: Path | None = field(default_factory=lambda: key_file("store_key"))
    trusted_keys: Path | None = field(default_factory=lambda: key_file("trusted_keys"))
    signing_key: Path | None = field(default_factory=lambda: key_file("signing_key"))
    compile: bool = True  # False: only stored code serves, nothing is compiled
    blocking: bool = False  # wait for the compiler instead of computing without it meanwhile
    graphs: bool = True  # CUDA graphs, where the device has them
    graph_bytes: int = 1024 * MIB  # video memory that CUDA graphs may hold
    lora_base: str = AUTO  # one of LORA_BASES

    def shares_code(self, other: Config | None) -> bool:
        """Return whether `other` has its compiled code from the same backend and store."""
        return other is not None and (self.backend, self.store) == (other.backend, other.store)

    def __post_init__(self) -> None:
        if self.lora_base not in LORA_BASES:
            expected = ", ".join(LORA_BASES)
            raise ValueError(f"lora_base is {self.lora_base!r}; expected one of {expected}")
        if not self.fetch_s >= 0:
            raise ValueError(f"fetch_s is {self.fetch_s}; expected 0 or more seconds")
        for name, least in (("store_bytes", 1), ("graph_bytes", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {least} or more bytes")
