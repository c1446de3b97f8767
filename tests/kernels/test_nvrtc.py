"""Where NVRTC is looked for, and what it is asked for. Compiling is tried in tests/gpu/."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_accel.compile.backends.kernels import nvrtc
from lib_accel.errors import BackendUnavailable, CompileFailed

FILES: dict[tuple[str, bool], list[str]] = {
    # NVIDIA's wheels of PyPI: each file that has nvrtc in its name
    ("11", False): [
        "nvidia/cuda_nvrtc/lib/libnvrtc.so.11.2",
        "nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.11.8",
    ],
    ("12", False): [
        "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        "nvidia/cuda_nvrtc/lib/libnvrtc.alt.so.12",
        "nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.8",
        "nvidia/cuda_nvrtc/lib/libnvrtc-builtins.alt.so.12.8",
    ],
    ("13", False): [
        "nvidia/cu13/lib/libnvrtc.so.13",
        "nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
    ],
    ("11", True): [
        "nvidia/cuda_nvrtc/bin/nvrtc64_112_0.dll",
        "nvidia/cuda_nvrtc/bin/nvrtc-builtins64_118.dll",
    ],
    ("12", True): [
        "nvidia/cuda_nvrtc/bin/nvrtc64_120_0.dll",
        "nvidia/cuda_nvrtc/bin/nvrtc64_120_0.alt.dll",
        "nvidia/cuda_nvrtc/bin/nvrtc-builtins64_129.dll",
    ],
    ("13", True): [
        "nvidia/cu13/bin/x86_64/nvrtc64_130_0.dll",
        "nvidia/cu13/bin/x86_64/nvrtc-builtins64_135.dll",
    ],
}
TORCHS: dict[tuple[str, bool], list[str]] = {
    # torch's own wheels, of download.pytorch.org
    ("11", False): [
        "torch/lib/libnvrtc-672ee683.so.11.2",
        "torch/lib/libnvrtc-builtins-2dc4bf68.so.11.8",
    ],
    ("11", True): ["torch/lib/nvrtc64_112_0.dll", "torch/lib/nvrtc-builtins64_118.dll"],
    ("12", True): ["torch/lib/nvrtc64_120_0.dll", "torch/lib/nvrtc-builtins64_121.dll"],
}
LAID_OUT = [(key, names) for table in (FILES, TORCHS) for key, names in table.items()]


@pytest.mark.parametrize(("key", "names"), LAID_OUT, ids=[names[0] for _, names in LAID_OUT])
def test_the_library_is_found_where_wheels_put_it(
    key: tuple[str, bool], names: list[str], tmp_path: Path
):
    major, windows = key
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = nvrtc.find_library(tmp_path / "torch", major, windows)
    assert found == tmp_path / names[0]
    for other in {"11", "12", "13", "14"} - {major}:
        assert nvrtc.find_library(tmp_path / "torch", other, windows) is None


def test_without_the_library_the_system_is_asked_by_its_name(monkeypatch: pytest.MonkeyPatch):
    assert [nvrtc.system_name(major) for major in ("11", "12", "13")] == [
        "libnvrtc.so.11.2",
        "libnvrtc.so.12",
        "libnvrtc.so.13",
    ]
    monkeypatch.setattr(nvrtc.sys, "platform", "win32")
    assert [nvrtc.system_name(major) for major in ("11", "12", "13")] == [
        "nvrtc64_112_0.dll",
        "nvrtc64_120_0.dll",
        "nvrtc64_130_0.dll",
    ]


def test_a_missing_library_names_the_package_that_has_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nvrtc, "system_name", lambda major: f"libnone.so.{major}")
    for version, package in ("12.8", "nvidia-cuda-nvrtc-cu12"), ("13.0", "nvidia-cuda-nvrtc"):
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(nvrtc, "find_library", lambda *_: None)
        with pytest.raises(BackendUnavailable, match=f"pip install {package}$"):
            nvrtc.version()


def test_a_torch_without_cuda_or_for_rocm_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendUnavailable, match="this torch is a build without CUDA"):
        nvrtc.version()
    monkeypatch.setattr(torch.version, "hip", "6.0")
    with pytest.raises(BackendUnavailable, match="this torch is for ROCm"):
        nvrtc.compile_kernels("sm_86", torch.float16)
    with pytest.raises(BackendUnavailable, match="the device is cpu"):
        nvrtc.architecture(torch.device("cpu"))
    with pytest.raises(CompileFailed, match=r"no kernels for torch.float64; expected .*float16"):
        nvrtc.compile_kernels("sm_86", torch.float64)


OF_11_8 = [35, 37, 50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90]
OF_13_5 = [75, 80, 86, 87, 88, 89, 90, 100, 103, 107, 110, 120, 121]
"""What these versions of NVRTC know."""


@pytest.mark.parametrize(
    ("card", "of_11_8", "of_13_5"),
    [
        ((6, 1), "sm_61", None),
        ((7, 5), "sm_75", "sm_75"),
        ((8, 6), "sm_86", "sm_86"),
        ((8, 9), "sm_89", "sm_89"),
        ((9, 0), "sm_90", "sm_90"),
        ((12, 0), "compute_90", "sm_120"),
        ((12, 3), "compute_90", "sm_121"),
        ((3, 0), None, None),
    ],
    ids=str,
)
def test_the_nearest_architecture_that_the_card_runs_is_taken(
    card: tuple[int, int], of_11_8: str | None, of_13_5: str | None
):
    assert nvrtc.best_architecture(card, OF_11_8) == of_11_8
    assert nvrtc.best_architecture(card, OF_13_5) == of_13_5
