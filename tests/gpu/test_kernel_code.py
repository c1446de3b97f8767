"""The fused kernels as NVRTC makes them, and what their launches are given.

The driver of the laboratory computes nothing: numbers are in tests/kernels/.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lib_accel.compile.backends.kernels import embedding, nvrtc, operations
from lib_accel.compile.backends.kernels.driver import load_kernels
from lib_accel.compile.backends.kernels.launching import KERNELS, parted
from lib_accel.compile.backends.kernels.operations import Kernels
from lib_accel.errors import ArtifactRejected, BackendUnavailable, CompileFailed

from ..kernels.cases import CASES, Case

CARD = torch.device("cuda:0")
CARDS = (60, 75, 80, 86, 89, 90, 120)
USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
STRUCTS = {
    "group_norm": operations._GROUP_NORM,
    "layer_norm": operations._LAYER_NORM,
    "geglu": operations._GEGLU,
    "add": operations._ADD,
    "upsample": operations._ADD,
}


def usage(code: bytes, folder: Path) -> dict[str, tuple[int, ...]]:
    """Return, by kernel, its registers, its stack, its shared and its local memory in bytes."""
    import triton

    tools, found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin", []
    file = folder / "kernels.cubin"
    for part in parted(code):
        file.write_bytes(part)
        command = [str(tools / "cuobjdump"), "-res-usage", str(file)]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        found += USAGE.findall(said.stdout + said.stderr)
    return {name: tuple(map(int, rest)) for name, *rest in found}


@pytest.mark.parametrize("dtype", nvrtc.ELEMENTS, ids=str)
@pytest.mark.parametrize("card", CARDS)
def test_no_kernel_of_any_card_spills(card: int, dtype: torch.dtype, tmp_path: Path):
    if card not in nvrtc._Nvrtc().architectures():
        pytest.skip(f"NOT RUN: NVRTC {nvrtc.version()} makes no code for sm_{card}")
    found = usage(nvrtc.compile_kernels(f"sm_{card}", dtype), tmp_path)
    assert set(found) == set(KERNELS)
    for name, (registers, stack, shared, local) in found.items():
        assert (stack, local) == (0, 0), f"{name} keeps {stack} bytes in memory"
        threads = 128 if "layer" in name else 256
        assert registers * threads * 2 <= 65536, "two blocks have room beside each other"
        assert shared <= 20480
    if where := os.environ.get("ACCEL_USAGE"):  # for the table in docs/kernels.md
        with Path(where).open("a") as file:
            file.writelines(
                f"{card} {dtype} {n} {' '.join(map(str, u))}\n" for n, u in found.items()
            )


def test_ptx_for_a_card_to_come_is_made_and_loaded():
    code = nvrtc.compile_kernels("compute_90", torch.float16)
    assert b".target sm_90" in code
    assert load_kernels(code, CARD, torch.float16).dtype == torch.float16


def test_this_card_has_an_architecture():
    assert nvrtc.architecture(CARD) == f"sm_{os.environ['PRETEND_CARD']}"


def test_what_nvrtc_refuses_is_said_in_a_sentence():
    words = r"does not compile the kernels for --gpu-architecture=sm_10: .*\(5\)"
    with pytest.raises(CompileFailed, match=words):
        nvrtc.compile_kernels("sm_10", torch.float16)


def test_code_for_another_card_is_refused():
    code = nvrtc.compile_kernels("sm_75", torch.float16)
    with pytest.raises(ArtifactRejected, match="the driver does not load the kernels: "):
        load_kernels(code, CARD, torch.float16)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (0, "the kernel group_norm_statistics_wide is not loaded"),
        (1, "the kernels are cut short or no kernels"),
        (-9, "the kernels are cut short or no kernels"),
    ],
)
def test_code_that_was_cut_short_is_refused(kept: int, words: str):
    code = nvrtc.compile_kernels(nvrtc.architecture(CARD), torch.float16)
    with pytest.raises(ArtifactRejected, match=words):
        load_kernels(code[:kept], CARD, torch.float16)


def test_a_missing_nvrtc_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nvrtc, "find_library", lambda *_: None)
    monkeypatch.setattr(nvrtc, "system_name", lambda major: f"libnone.so.{major}")
    with pytest.raises(BackendUnavailable, match="pip install nvidia-cuda-nvrtc-cu12"):
        nvrtc.version()


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load_kernels(
        nvrtc.compile_kernels(nvrtc.architecture(CARD), torch.float16), CARD, torch.float16
    )


def on_card(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.to(CARD)
    return [on_card(each) for each in value] if isinstance(value, list) else value


def pointers(name: str, arguments: bytes) -> Iterator[int]:
    """Yield every address in the arguments of a kernel."""
    if name.startswith("embedding"):
        yield embedding._LAYERS.unpack_from(arguments)[0]
        for layer in embedding._LAYER.iter_unpack(arguments[embedding._LAYERS.size :]):
            yield from layer[:8]
    else:
        packed: struct.Struct = next(s for n, s in STRUCTS.items() if name.startswith(n))
        count = re.match(r"@(\d+)P", packed.format)
        assert count
        yield from packed.unpack(arguments)[: int(count[1])]


def blocks() -> list[range]:
    """Return what torch's allocator has given out."""
    return [
        range(block["address"], block["address"] + block["size"])
        for segment in torch.cuda.memory_snapshot()
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    ]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_kernels_are_given_live_memory_on_the_current_stream(
    kernels: Kernels, case: Case, monkeypatch: pytest.MonkeyPatch
):
    inputs = case.inputs(lambda *shape: torch.randn(shape).half())
    given = {name: on_card(value) for name, value in inputs.items()}
    launch, seen = kernels.launcher.launch, 0

    def watched(name: str, grid: tuple[int, int, int], threads: int, arguments: bytes) -> None:
        nonlocal seen
        live = blocks()
        for pointer in pointers(name, arguments):
            assert not pointer or any(pointer in block for block in live), name
        seen += 1
        launch(name, grid, threads, arguments)

    monkeypatch.setattr(kernels.launcher, "launch", watched)
    log, stream = Path(os.environ["PRETEND_LOG"]), torch.cuda.Stream(CARD)
    before = log.stat().st_size
    with torch.cuda.stream(stream):
        case.call(kernels, given)
    own = re.findall(
        rf"^kernel (?:{'|'.join(KERNELS)}) .* stream=(\S+)$", log.read_text()[before:], re.M
    )
    assert len(own) == seen > 0
    assert {int(each, 16) for each in own} == {stream.cuda_stream}


def test_all_are_recorded_in_a_graph_and_in_a_new_thread(kernels: Kernels):
    inputs = [
        {name: on_card(v) for name, v in case.inputs(lambda *s: torch.randn(s).half()).items()}
        for case in CASES
    ]
    graph = torch.cuda.CUDAGraph()
    timesteps = [i for i, case in enumerate(CASES) if case.operation == "embedding"]
    for i in timesteps:  # as the WebUI gives them
        inputs[i]["timesteps"] = inputs[i]["timesteps"].float()  # type: ignore[union-attr]
    with torch.cuda.graph(graph):
        for case, given in zip(CASES, inputs, strict=True):
            case.call(kernels, given)
    log = Path(os.environ["PRETEND_LOG"])
    before = log.stat().st_size
    graph.replay()
    assert log.read_text()[before:].splitlines()[-1].startswith("graph ")
    failed = []

    def compute() -> None:
        try:
            for case, given in zip(CASES, inputs, strict=True):
                case.call(kernels, given)
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert not failed
