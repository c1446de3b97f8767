"""Counting launches from generated code, the model of their times, and the command for it.

The counts themselves need the laboratory: tests/gpu. Here a stored piece of generated code is
replayed on tensors without storage.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_accel.errors import AccelError
from lib_accel.tools.bench import modelled
from lib_accel.tools.bench.modelled import CARDS, MB, Card, row, table
from lib_accel.tools.laboratory.generated import GeneratedCode
from lib_accel.tools.laboratory.launches import (
    CLASSES,
    COMPUTING,
    Launch,
    kind_of_generated,
    kind_of_operator,
)
from lib_accel.tools.laboratory.launches import Counter as LaunchCounter

from .commands import Run, failure

STORED = Path(__file__).with_name("generated")
META = torch.device("meta")


def launches_of(name: str, inputs: list[Tensor], log: Path) -> tuple[list[Launch], Tensor]:
    """Replay a stored piece of generated code; return its launches and its output."""
    code = GeneratedCode((STORED / f"{name}.cpp").read_text(encoding="utf-8"))
    counter = LaunchCounter(log / "driver.log")
    with counter:
        (out,) = code(inputs, counter.launched)
    return counter.launches, out


def half(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float16, device=META)


def channels_last(*shape: int) -> Tensor:
    return half(*shape).contiguous(memory_format=torch.channels_last)


def resblock(batch: int, height: int, width: int) -> list[Tensor]:
    """The inputs of ResBlock 320 -> 320 as the stored code takes them."""
    c, conv = 320, channels_last(320, 320, 3, 3)
    norms = [half(c), half(c)]
    weights = [*norms, conv, half(c), half(c, 1280), half(c), *norms, conv, half(c)]
    return [channels_last(batch, c, height, width), half(batch, 1280), *weights]


IMAGE = half(2, 64, 9, 9)


def test_a_stored_resblock_has_its_launches_and_bytes(tmp_path: Path):
    launches, out = launches_of("resblock", resblock(2, 64, 64), tmp_path)
    assert out.shape == (2, 320, 64, 64)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert [launch.kind for launch in launches] == [
        "group norm statistics",
        "group norm apply",
        "layout copies",
        "convolution",
        "embedding",
        "group norm statistics",
        "group norm apply",
        "layout copies",
        "convolution",
        "residual/bias",
    ], "and a product, which counts on the pretend card only"
    activation, weight, statistics, vector = 2 * 320 * 64 * 64 * 2, 320 * 320 * 9 * 2, 2 * 256, 640
    _, apply, copy, convolution, *_, residual = launches
    assert apply.bytes == 2 * activation + statistics + 2 * vector
    assert copy.bytes == 2 * activation
    assert convolution.bytes == 2 * activation + weight
    assert convolution.flops == 2 * activation // 2 * 320 * 9
    assert residual.bytes == 3 * activation + vector


def test_bytes_are_those_of_the_real_size(tmp_path: Path):
    """The stored code takes any size."""
    small, out = launches_of("resblock", resblock(1, 8, 16), tmp_path)
    large, _ = launches_of("resblock", resblock(2, 64, 64), tmp_path)
    assert out.shape == (1, 320, 8, 16)
    assert 64 * small[2].bytes == large[2].bytes


def test_a_stored_transformer_is_classified(tmp_path: Path):
    c, d = 320, 768
    vector, square = half(c), half(c, c)
    attention = [square, square, square, square, vector]
    cross = [square, half(c, d), half(c, d), square, vector]
    feed_forward = [half(8 * c, c), half(8 * c), half(c, 4 * c), vector]
    weights = [vector, vector, half(c, c, 1, 1), vector, *attention, *cross, *feed_forward]
    weights += [vector] * 6 + [half(c, c, 1, 1), vector]
    inputs = [channels_last(2, c, 64, 64), half(2, 77, d), *weights]
    launches, out = launches_of("transformer", inputs, tmp_path)
    assert out.shape == (2, 320, 64, 64)
    assert Counter(launch.kind for launch in launches) == {
        "group norm statistics": 1,
        "group norm apply": 1,
        "layer norm": 3,
        "GEGLU": 1,
        "residual/bias": 2,
    }
    geglu = next(launch for launch in launches if launch.kind == "GEGLU")
    assert geglu.bytes == (8 + 4) * 320 * 2 * 64 * 64 * 2


def test_code_that_calls_something_unknown_is_refused(tmp_path: Path):
    text = (STORED / "resblock.cpp").read_text(encoding="utf-8")
    code = GeneratedCode(text.replace("aoti_torch_cuda_mm_out", "aoti_torch_cuda__int_mm_out"))
    with pytest.raises(AccelError, match="aoti_torch_cuda__int_mm_out"):
        code(resblock(2, 8, 8), lambda name, tensors: None)
    with pytest.raises(AccelError, match="no host code"):
        GeneratedCode("int main() {}")


@pytest.mark.parametrize(
    ("name", "read", "written", "kind"),
    [
        ("triton_red_fused_var_mean_0", IMAGE, half(2, 32), "group norm statistics"),
        ("triton_poi_fused_mul_rsqrt_var_mean_1", IMAGE, IMAGE, "group norm apply"),
        ("triton_per_fused_add_native_layer_norm_2", half(99, 64), half(99, 64), "layer norm"),
        ("triton_red_fused_cos_mul_sum_3", half(1280, 320), half(2, 1280), "matrix product"),
        ("triton_poi_fused_silu_4", half(2, 1280), half(2, 1280), "embedding"),
        ("triton_poi_fused_add_silu_5", half(4096, 320), half(4096, 320), "activation"),
        ("triton_poi_fused_cat_6", IMAGE, half(2, 128, 9, 9), "cat"),
        ("triton_poi_fused_mul_7", IMAGE, half(2, 128, 9, 9), "other"),
    ],
)
def test_generated_kernels_are_classified(name: str, read: Tensor, written: Tensor, kind: str):
    assert kind_of_generated(name, [read], [written]) == kind


@pytest.mark.parametrize(
    ("name", "tensor", "kind"),
    [
        ("silu", IMAGE, "activation"),
        ("silu", half(2, 1280), "embedding"),
        ("addmm", half(2, 1280), "matrix product"),
        ("_scaled_dot_product_flash_attention", half(2, 8, 64, 40), "attention"),
        ("clone", IMAGE, "layout copies"),
        ("cumsum", IMAGE, "other"),
    ],
)
def test_operators_of_torch_are_classified(name: str, tensor: Tensor, kind: str):
    assert kind_of_operator(name, [tensor], [tensor]) == kind


def test_a_launch_takes_what_bounds_it():
    card = Card("a card", bandwidth=100e9, rate=10e12)
    rows = row(
        "aoti",
        [
            ["copy", "layout copies", 200_000_000, 0],
            ["copy", "layout copies", 100_000_000, 0],
            ["mm", "matrix product", 1_000_000, 50_000_000_000],
            ["mm", "matrix product", 100_000_000, 5_000_000_000],
        ],
        card,
    )
    assert (rows["backend"], rows["launches"], rows["memory_bound_mb"]) == ("aoti", 4, 300)
    assert rows["modelled_ms"] == pytest.approx(2 + 1 + 5 + 1)
    assert list(rows["classes"]) == ["layout copies", "matrix product"]
    of = rows["classes"]["matrix product"]
    assert (of["launches"], of["mb"]) == (2, 101)
    assert of["modelled_ms"] == pytest.approx(6)


def result(**changes: object) -> dict[str, object]:
    """What `measure` returns, for launches that nobody counted."""
    card = CARDS[86]
    copy = row("aoti", [["copy", "layout copies", int(3 * MB), 0]], card)
    conditions = {"family": "sd1", "size": 512, "batch": 2, "tokens": 77, "dtype": "float16"}
    versions = {"torch": "2.10.0", "triton": "3.6.0", "date": "2026-11-26", "arch": "sm_86"}
    return {
        "model": True,
        "card": vars(card),
        **versions,
        **conditions,
        **modelled.digests(),
        "rows": [copy],
        **changes,
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "result.json"


MODEL = ("bench", "--device", "cuda:sm_86", "--model")


def test_stored_counts_serve_while_the_source_is_the_same(run: Run, file: Path):
    file.write_text(json.dumps(result()))
    status, out, _ = run(*MODEL, "--stored", file)
    assert status == 0
    assert "Modelled, never run" in out
    assert "| aoti | 1 | 3 | 0.00 |" in out
    status, out, _ = run(*MODEL, "--stored", file, "--json")
    assert (status, json.loads(out)["rows"][0]["launches"]) == (0, 1)


@pytest.mark.parametrize("digest", ["source", "counted_source"])
def test_stored_counts_of_other_source_are_refused(run: Run, file: Path, digest: str):
    file.write_text(json.dumps(result(**{digest: "0" * 64})))
    error = failure(run(*MODEL, "--stored", file, "--json"))
    assert "counted from other source code than today's. Count again" in error


def test_stored_counts_of_something_else_are_refused(run: Run, file: Path):
    file.write_text(json.dumps(result(size=768)))
    assert "was counted for size 768" in failure(run(*MODEL, "--stored", file))
    file.write_text(json.dumps({"rows": []}))
    assert "expected the JSON that bench --model" in failure(run(*MODEL, "--stored", file))


def test_the_digest_covers_what_is_counted():
    names = {file.name for file in modelled.counted_files()}
    assert {"layers.py", "engine.py", "generated.py", "launches.py", "stock.py"} <= names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model", "--model needs the architecture of a card"),
        ("--model --device cuda", "cuda:sm_75, cuda:sm_80, cuda:sm_86, cuda:sm_89, cuda:sm_90"),
        ("--model --device cuda:sm_61", "one of cuda:sm_75"),
        ("--model --device cuda:sm_86 --variants aoti,warp", "warp: expected some of aoti"),
        ("--model --device cuda:sm_86 --dtype float32", "expected float16 or bfloat16"),
        ("--model --device cuda:sm_75 --dtype bfloat16", "torch compiles it for sm_80 and later"),
        ("--model --device cuda:sm_86 --family sd9", "'sd9' is neither a family"),
        ("--device cuda:sm_86", "--device cuda:sm_86 models a card: expected --model with it"),
        ("--stored result.json", "--stored models a card: expected --model with it"),
    ],
)
def test_what_cannot_be_modelled_is_refused(run: Run, arguments: str, message: str):
    assert message in failure(run("bench", *arguments.split()), status=2)


def test_the_table_names_every_class_and_says_that_it_is_a_model():
    launches = [["kernel", kind, int(MB), 10**9] for kind in CLASSES]
    text = table({**result(), "rows": [row("aoti", launches, CARDS[86])]})
    assert all(f"\n| {kind} | 1, 1, " in text for kind in CLASSES)
    assert f"| aoti | {len(CLASSES)} | {len(CLASSES) - len(COMPUTING)} |" in text
    assert text.count("odelled") >= 4
