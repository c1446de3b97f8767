"""Which backend serves, and why the better ones do not."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.compile.session import BACKENDS, Session
from lib_accel.config import Config
from lib_accel.store.store import ArtifactStore

from .. import tiny
from ..threads import one_thread  # noqa: F401  (a fixture)


def choose(
    store: Path,
    backend: str = "auto",
    may_compile: bool = True,
    readonly: bool = False,
    failed: dict[str, str] | None = None,
    **machine: Any,
) -> tuple[str | None, str]:
    """Return the name of the backend that serves, and the reasons why the better ones do not.

    `machine`: how the machine differs from this one, with a torch that makes packages.
    """
    if machine.get("device_type") == "cuda":
        machine = {"device_name": "A card", "capability": "8.6", **machine}
    chosen = Session().choose(
        tiny.target(**{"packaging": True, **machine}),
        ArtifactStore(store, readonly=readonly),
        Config(backend, store, compile=may_compile),
        failed,
    )
    return chosen.backend.name if chosen.backend else None, chosen.reason or ""


def test_the_first_choice_serves_without_a_reason(tmp_path: Path):
    assert choose(tmp_path) == ("aoti", "")
    assert choose(tmp_path, "aoti") == ("aoti", "")
    assert choose(tmp_path, "jit") == ("jit", "")
    assert choose(tmp_path, "eager") == ("eager", "")


def test_auto_is_silent_about_what_the_user_may_install(tmp_path: Path):
    assert choose(tmp_path, "auto") == ("aoti", "")
    name, reason = choose(tmp_path, "tensorrt")
    assert name == "eager"
    assert reason.startswith("tensorrt: TensorRT runs on NVIDIA's cards alone, not on ")
    failed = {"tensorrt": "it failed"}
    assert choose(tmp_path, failed=failed) == ("aoti", "tensorrt: it failed")


def test_old_torch_falls_to_jit(tmp_path: Path):
    assert choose(tmp_path, packaging=False, torch="2.1.2") == (
        "jit",
        "aoti: torch 2.1.2 cannot make AOTInductor packages with dynamic shapes; "
        "that needs torch 2.6 or later",
    )


def test_old_torch_on_a_new_python_falls_to_eager(tmp_path: Path):
    target = tiny.target(packaging=False, torch="2.1.2", compile=False)
    chosen = Session().choose(target, ArtifactStore(tmp_path), Config(store=tmp_path))
    assert chosen.backend is not None
    assert chosen.backend.name == "eager"
    assert "jit: torch.compile does not work with torch 2.1.2 on Python 3." in str(chosen.reason)


def test_no_compiler_falls_to_eager_with_both_reasons(tmp_path: Path):
    name, reason = choose(tmp_path, cxx=None)
    assert name == "eager"
    assert "aoti: no C++ compiler was found; install" in reason
    assert "jit: no C++ compiler was found; install" in reason


def test_a_stored_artifact_needs_no_compiler(tiny_store: Path, tmp_path: Path):
    assert choose(tiny_store, cxx=None) == ("aoti", "")
    assert choose(tiny_store, may_compile=False) == ("aoti", "")
    assert choose(tiny_store, readonly=True) == ("aoti", "")
    assert "the store" in choose(tmp_path, "aoti", readonly=True)[1]


def test_nothing_is_compiled_where_the_config_forbids_it(tmp_path: Path):
    name, reason = choose(tmp_path, may_compile=False)
    assert name == "eager"
    assert "jit: compiling is switched off" in reason


def test_no_backend_serves_on_a_device_that_none_was_tried_on(tmp_path: Path):
    name, reason = choose(tmp_path, device_type="mps")
    assert name is None
    assert "aoti: AOTInductor is not tried on mps" in reason
    assert "jit: torch.compile is not tried on mps" in reason
    assert "eager: the clean UNet is not tried on mps" in reason
    assert choose(tmp_path, "eager", device_type="mps")[0] is None


def test_a_gpu_without_triton_falls_to_eager(tmp_path: Path):
    name, reason = choose(tmp_path, device_type="cuda", triton=None)
    assert name == "eager"
    assert "aoti: Triton is not installed, which compiling for a GPU needs" in reason
    assert "jit: Triton is not" in reason


def test_a_gpu_without_the_headers_of_cuda_falls_to_jit(tmp_path: Path):
    """jit needs none: its host code is Python."""
    name, reason = choose(tmp_path, device_type="cuda", triton="3.2", gpu_headers=None)
    assert name == "jit"
    assert "aoti: CUDA's headers were not found; install the CUDA toolkit" in reason
    found = choose(tmp_path, device_type="cuda", triton="3.2", gpu_headers="/triton")
    assert found == ("aoti", "")


CARDS: dict[str, tuple[dict[str, Any], str]] = {
    "a card that Triton does not know": (
        {"device_name": "GTX 1080", "capability": "6.1"},
        "GTX 1080 has compute capability 6.1; torch compiles for 7.0 and later",
    ),
    "bfloat16 on Turing": (
        {"device_name": "RTX 2080", "capability": "7.5", "dtype": torch.bfloat16},
        "RTX 2080 has compute capability 7.5; torch compiles bfloat16 for 8.0 and later",
    ),
    "ZLUDA": ({"device_name": "Radeon [ZLUDA]"}, "ZLUDA does not run what torch compiles"),
}


@pytest.mark.parametrize(("card", "words"), CARDS.values(), ids=CARDS)
def test_a_card_that_cannot_run_compiled_code_falls_to_eager_at_once(
    card: dict[str, Any], words: str, tmp_path: Path
):
    name, reason = choose(tmp_path, device_type="cuda", triton="3.2", gpu_headers="/t", **card)
    assert name == "eager"
    assert reason.count(words) == 2, "of aoti and of jit"


def test_what_runs_on_cards_alone_is_named_where_there_is_one_or_it_is_set(tmp_path: Path):
    assert "kernels" not in choose(tmp_path, may_compile=False)[1]
    assert "kernels" in choose(tmp_path, may_compile=False, device_type="cuda")[1]
    assert "kernels: the fused kernels run on NVIDIA" in choose(tmp_path, "kernels")[1]


def test_without_cudnn_no_compiled_code_serves(tmp_path: Path):
    """It would read the results of convolutions in the wrong memory layout."""
    with torch.backends.cudnn.flags(enabled=False):
        name, reason = choose(tmp_path, device_type="cuda", triton="3.2", gpu_headers="/t")
    assert name == "eager"
    assert reason.count("cuDNN is switched off") == 3, "of aoti, jit and kernels"


@pytest.mark.skipif(sys.platform == "win32", reason="paths are quoted there")
@pytest.mark.parametrize("folder", ["/tmp/my own", "/tmp/o'brien", '/tmp/a "b"', "/tmp/a\\b"])
def test_a_folder_that_needs_quotes_falls_to_eager(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", folder)
    name, reason = choose(tmp_path)
    assert name == "eager"
    for backend in ("aoti", "jit"):
        assert f"{backend}: {folder} has a space or quote in its name" in reason


@pytest.mark.parametrize("folder", ["/tmp/快速", "/tmp/a(b)&c;$d"])
def test_other_folders_serve(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", folder)
    assert choose(tmp_path) == ("aoti", "")


def test_a_backend_that_failed_is_passed_over(tmp_path: Path):
    assert choose(tmp_path, failed={"aoti": "it broke"}) == ("jit", "aoti: it broke")


def test_a_backend_that_does_not_exist_is_an_error(tmp_path: Path):
    with pytest.raises(
        ValueError, match="'warp'; expected one of auto, tensorrt, aoti, jit, kernels, eager"
    ):
        choose(tmp_path, "warp")


def test_a_session_has_one_backend_of_each_kind():
    session = Session()
    for kind in BACKENDS:
        backend = session.backend(kind.name)
        assert isinstance(backend, kind)
        assert session.backend(kind.name) is backend
        assert Session().backend(kind.name) is not backend
    with pytest.raises(KeyError):
        session.backend("warp")


def test_failures_are_shared_by_target_and_config_until_they_are_forgotten(tmp_path: Path):
    session, target, config = Session(), tiny.target(), Config(store=tmp_path)
    session.failures(target, config)["aoti"] = "it broke"
    assert session.failures(tiny.target(), Config(store=tmp_path)) == {"aoti": "it broke"}
    assert session.failures(target, replace(config, blocking=True)) == {}
    assert session.failures(tiny.target(torch="2.1.2"), config) == {}
    session.forget_failures()
    assert session.failures(target, config) == {}


def test_without_a_compiler_the_clean_unet_answers(tmp_path: Path):
    engine = tiny.engine(tmp_path / "store", machine={"cxx": None, "packaging": True})
    engine.prepare()
    status = engine.status
    assert (status.state, status.backend, engine.job) == ("eager", "eager", None)
    assert str(status.reason).count("no C++ compiler was found") == 2
    tiny.check(engine, tiny.inputs())
