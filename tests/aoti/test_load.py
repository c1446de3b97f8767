"""Loading compiled code from where it lies in the store."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.compile.accuracy import example_inputs
from lib_accel.compile.backends.aoti import compiler
from lib_accel.compile.backends.aoti.backend import Aoti
from lib_accel.compile.backends.aoti.load import ARCHIVE, load_unit, misfit
from lib_accel.compile.machine import is_x86_64
from lib_accel.compile.units import UnitModule
from lib_accel.errors import ArtifactRejected
from lib_accel.store import Artifact, ArtifactStore

from .. import tiny
from .kit import OUTPUT
from .processes import PATIENCE_S

CPU = torch.device("cpu")

SERVE = """
import os, sys
from pathlib import Path
from tests import tiny
engine, given = tiny.ready(Path(sys.argv[1])), tiny.inputs()
tiny.check(engine, given)
tiny.served(engine, given)
print("right", flush=True)
os._exit(0)
"""


def artifact_of(store: Path) -> Artifact:
    """Return the artifact of OUTPUT."""
    artifact = ArtifactStore(store).get(tiny.target().keys[OUTPUT])
    assert artifact is not None
    return artifact


def assert_right(code: Any) -> None:
    """Assert that `code` computes OUTPUT as torch itself does."""
    size = (2, 8, 24, 77)
    activations, weights = example_inputs(OUTPUT, size, torch.float32, CPU)
    expected = UnitModule(OUTPUT)(activations, weights)
    torch.testing.assert_close(code([*activations, *weights]), expected, atol=1e-4, rtol=1e-4)


def cubin(card: int, newer: bool = False) -> bytes:
    """Return the ELF header of GPU code for compute capability `card`/10, as ptxas writes it."""
    header = bytearray(64)
    header[:8] = b"\x7fELF\x02\x01\x01" + (b"\x41" if newer else b"\x33")
    flags = card << 8 if newer else 0x560500 | card
    struct.pack_into("<H28xI", header, 18, 190, flags)
    return bytes(header)


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize(
    ("code", "card", "fits"),
    [
        (cubin(86), "8.6", True),
        (cubin(80), "8.6", True),
        (cubin(86), "8.0", False),
        (cubin(75), "8.6", False),
        (cubin(120, newer=True), "12.0", True),
        (cubin(120, newer=True), "9.0", False),
        (b"MZ, no cubin", "8.6", False),
    ],
)
def test_gpu_code_for_another_card_is_refused_before_it_is_called(
    code: bytes, card: str, fits: bool, archived: bool, tmp_path: Path
):
    if archived:
        with zipfile.ZipFile(tmp_path / ARCHIVE, "w") as archive:
            archive.writestr("unit/data/aotinductor/model/kernel.cubin", code)
    else:
        (tmp_path / "kernel.cubin").write_bytes(code)
    machine = replace(tiny.target().machine, device_type="cuda", capability=card)
    why = misfit(tmp_path, machine, "x86-64-v2")
    assert (why is None) == fits
    assert fits or str(why).endswith(f"expected {card}")


@pytest.mark.skipif(not is_x86_64(), reason="only x86-64 has levels")
def test_code_for_a_newer_processor_is_refused_before_it_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    machine = tiny.target().machine
    assert misfit(tmp_path, machine, "x86-64-v2") is None
    assert misfit(tmp_path, machine, "x86-64-v3") is None
    assert misfit(tmp_path, machine, "x86-64-v4") == (
        "its code is for processors with x86-64-v4; this one has x86-64-v3"
    )
    gpu = replace(machine, device_type="cuda", capability="8.6")
    assert "does not name" in str(misfit(tmp_path, gpu, None))


def test_loading_writes_no_file(root: Path, own_store: Path, tmp_path: Path):
    """Also in a process that ends at once and cleans up nothing, as the WebUI's does."""
    temp = tmp_path / "temp"
    temp.mkdir()
    before = sorted(own_store.rglob("*"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temp)),
    }
    command = [sys.executable, "-c", SERVE, str(own_store)]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == b"right\n"
    assert list(temp.iterdir()) == []
    assert sorted(own_store.rglob("*")) == before


def test_the_same_code_is_loaded_once(own_store: Path):
    """For every model and thread; code of other bytes under the same key is loaded anew."""
    backend, store, target = Aoti(), ArtifactStore(own_store), tiny.target()
    found: list[Mapping[Any, Any]] = []
    start = threading.Barrier(8)

    def load() -> None:
        start.wait()
        code = backend.make(target, store)
        assert isinstance(code, Mapping)
        found.append(code)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(each == found[0] for each in found)
    artifact = artifact_of(own_store)
    copy = Path(shutil.copytree(artifact.path, own_store.parent / "copy"))
    (copy / "more.json").write_text("{}")
    files = {name: copy / name for name in (*artifact.files, "more.json")}
    store.discard(artifact.key, "replaced by a test")
    store.put(artifact.recipe, files, artifact.verdict)
    again = backend.make(target, store)
    assert isinstance(again, Mapping)
    assert {layer for layer in target.units if again[layer] is not found[0][layer]} == {OUTPUT}
    assert_right(again[OUTPUT])


def test_a_library_that_does_not_load_is_refused_by_its_key(own_store: Path):
    artifact = artifact_of(own_store)
    library = next(name for name in artifact.files if name.endswith((".so", ".pyd")))
    bad = own_store.parent / "bad"
    bad.write_bytes(b"no library")
    store = ArtifactStore(own_store)
    files = {**{name: artifact.file(name) for name in artifact.files}, library: bad}
    copied = ArtifactStore(own_store.parent / "other").put(artifact.recipe, files, artifact.verdict)
    store.discard(artifact.key, "replaced by a test")
    files = {name: copied.file(name) for name in copied.files}
    store.put(artifact.recipe, files, artifact.verdict)
    before = dict(os.environ)
    with pytest.raises(ArtifactRejected, match="Output 64 -> 4 does not load: ") as caught:
        Aoti().make(tiny.target(), store)
    assert caught.value.key == artifact.key
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "verdict", [{}, {"compiled": [], "eager": []}, {"compiled": [1.0], "eager": [0.1]}]
)
def test_code_that_was_not_found_right_is_refused_by_its_key(own_store: Path, verdict: Any):
    artifact = artifact_of(own_store)
    copied = shutil.copytree(artifact.path, own_store.parent / "copy")
    files = {name: Path(copied, name) for name in artifact.files}
    store = ArtifactStore(own_store)
    store.discard(artifact.key, "replaced by a test")
    store.put(artifact.recipe, files, verdict)
    with pytest.raises(ArtifactRejected, match="no accuracy check for Output 64 -> 4") as caught:
        Aoti().make(tiny.target(), store)
    assert caught.value.key == artifact.key


def test_kept_bytes_counts_the_units_when_all_are_stored(own_store: Path):
    store, backend = ArtifactStore(own_store), Aoti()
    target = tiny.target()
    assert backend.kept_bytes(target, store) == sum(entry.bytes for entry in store.list())
    store.discard(target.keys[OUTPUT], "a test")
    assert backend.kept_bytes(target, store) is None


# -- torch before 2.13


class OldLoader:
    """Loads archives only, as torch before 2.13 does."""

    real = staticmethod(getattr(getattr(torch._C, "_aoti", None), "AOTIModelPackageLoader", None))

    def __new__(cls, path: str, *arguments: Any) -> Any:
        if Path(path).is_dir():
            raise RuntimeError("Failed to initialize zip archive: file open failed")
        return cls.real(path, *arguments)


@pytest.fixture
def old_loader(packaging: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", OldLoader)


def test_older_torch_runs_the_library_on_a_cpu(old_loader: None, tiny_store: Path):
    artifact = artifact_of(tiny_store)
    assert_right(load_unit(artifact.path, CPU))
    with pytest.raises(RuntimeError, match="zip archive"):
        load_unit(artifact.path, torch.device("cuda", 0))


@pytest.mark.parametrize("top", ["", "unit/"], ids=["torch 2.6", "newer torch"])
def test_a_package_is_unpacked_without_its_sources(tiny_store: Path, tmp_path: Path, top: str):
    """Newer torch puts everything into one folder of the archive."""
    artifact = artifact_of(tiny_store)
    compiler._unpack(pack(artifact, tmp_path, top), tmp_path / "unit")
    files = {p for p in (tmp_path / "unit").rglob("*") if p.is_file()}
    assert {p.relative_to(tmp_path / "unit").as_posix() for p in files} == set(artifact.files)
    assert_right(load_unit(tmp_path / "unit", CPU))


def test_older_torch_loads_an_archive_on_a_gpu(old_loader: None, tiny_store: Path, tmp_path: Path):
    """Shown with code for a CPU: the package stays an archive, and its sources are empty."""
    artifact, folder = artifact_of(tiny_store), tmp_path / "unit"
    package = pack(artifact, tmp_path, "raw/" if torch.__version__ >= (2, 7) else "")
    compiler._unpack(package, folder)
    compiler._keep_archive(package, folder)
    assert [path.name for path in folder.iterdir()] == [ARCHIVE]
    assert (folder / ARCHIVE).stat().st_size < package.stat().st_size
    with zipfile.ZipFile(folder / ARCHIVE) as archive:
        (source,) = [name for name in archive.namelist() if name.endswith(".cpp")]
        assert archive.read(source) == b""
    assert_right(load_unit(folder, CPU))


def pack(artifact: Artifact, folder: Path, top: str) -> Path:
    """Write a package as torch does, with a generated source, from the files of an artifact."""
    package = folder / "raw.pt2"
    library = next(name for name in artifact.files if name.endswith((".so", ".pyd")))
    with zipfile.ZipFile(package, "w") as archive:
        for name in artifact.files:
            archive.writestr(f"{top}{name}", artifact.file(name).read_bytes())
        archive.writestr(f"{top}{library.rpartition('.')[0]}.cpp", "int main() {}" * 1000)
        archive.writestr(f"{top}archive_format", "pt2")
        archive.writestr(f"{top}byteorder", "little")
    return package


def test_unpacked_code_is_small_and_has_no_sources(tiny_store: Path):
    for entry in ArtifactStore(tiny_store).list():
        assert entry.artifact is not None
        assert not [name for name in entry.artifact.files if name.endswith(".cpp")]
        assert entry.bytes < 20 * tiny.MIB / 16
