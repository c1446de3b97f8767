"""The command `bench`, on tiny models without a compiler."""

from __future__ import annotations

import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from lib_accel.compile.backends import jit
from lib_accel.model import presets
from lib_accel.tools.bench import ladder, variants
from lib_accel.tools.bench.images import text, vae, whole
from lib_accel.tools.bench.ladder import make_inputs
from lib_accel.tools.bench.measure import flops

from .commands import TINY, Run


@pytest.fixture
def known_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matmul rate that need not be measured, which takes seconds."""
    monkeypatch.setattr(ladder, "matmul_rate", lambda *_: 1e12)


def bench(run: Run, tmp_path: Path, *arguments: object) -> dict[str, Any]:
    folders = ("--out", tmp_path / "out", "--store", tmp_path / "store")
    status, out, _ = run("bench", "--family", "sd1:32", *TINY, *folders, "--json", *arguments)
    assert status == 0
    return json.loads(out)


@pytest.mark.slow
def test_every_row_is_timed_and_compared(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    variants = "reference,reference+sdpa,eager,eager+graphs"
    more = ("--rounds", 2, "--loras", "0,2", "--profile")
    result = bench(run, tmp_path, "--variants", variants, *more)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == variants.split(",")
    assert rows["eager+graphs"]["median_s"] is None
    assert "CUDA graphs need a CUDA device" in rows.pop("eager+graphs")["note"]
    for row in rows.values():
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert row["error"] < 1e-5  # the reference rows are an independent implementation
        assert row["peak_bytes"] >= result["weight_bytes"]
        rate = result["flops"] / row["median_s"] / result["matmul_flops_per_s"]
        assert row["of_matmul_rate"] == pytest.approx(rate)
    assert [row["loras"] for row in result["loras"]] == [0, 2]
    assert set(result["loras"][1]["seconds"]) == {"reference", "reference+sdpa", "eager"}
    names = {path.suffix: path for path in (tmp_path / "out").iterdir()}
    assert json.loads(names[".json"].read_text()) == result
    assert "| reference+sdpa | " in names[".md"].read_text()
    assert list(result["kernels"]) == ["eager"], "the last row that runs"
    first, second, *_ = result["kernels"]["eager"]
    assert first["ms"] >= second["ms"] > 0
    assert "aten::" in names[".md"].read_text()


@pytest.mark.usefixtures("known_rate")
def test_the_error_of_bfloat16_is_that_of_its_rounding(run: Run, tmp_path: Path) -> None:
    result = bench(run, tmp_path, "--variants", "eager", "--rounds", 1, "--dtype", "bfloat16")
    assert 1e-4 < result["rows"][0]["error"] < 0.1


@pytest.mark.usefixtures("known_rate")
def test_half_a_vae_is_timed_by_each_way(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setattr(vae, "matmul_rate", lambda *_: 1e12)
    places = ("--out", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu")
    sizes = ("--channels", 32, "--size", 64, "--rounds", 2)
    names = ("stock", "reference", "reference+sdpa", "eager")
    status, out, _ = run("bench", "vae", *places, *sizes, "--variants", ",".join(names), "--json")
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert status == 0
    for name in names:
        assert 0 < rows[name]["min_s"] <= rows[name]["median_s"] <= rows[name]["max_s"]
        assert rows[name]["error"] < 1e-5
    (report,) = (tmp_path / "out").glob("*.md")
    assert "| eager | " in report.read_text(encoding="utf-8")


@pytest.mark.usefixtures("known_rate")
def test_whole_images_are_timed_by_phases_and_agree(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of diffusers' networks too, which come from the same weights."""
    pytest.importorskip("diffusers")
    monkeypatch.setattr(whole, "matmul_rate", lambda *_: 1e12)
    monkeypatch.setitem(text._SIZES, 768, ((768, 1),))  # layers that a test need not wait for
    places = ("--out", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu")
    sizes = ("--family", "sd1:32", "--vae-channels", 32, "--size", 64, "--steps", 2, "--rounds", 1)
    names = ("stock", "reference", "reference+sdpa", "eager")
    status, out, _ = run("bench", "image", *places, *sizes, "--variants", ",".join(names), "--json")
    result = json.loads(out)
    rows = {row["name"]: row for row in result["rows"]}
    assert (status, tuple(rows), result["without_text"]) == (0, names, None)
    for row in rows.values():
        assert row["error"] < 1e-4
        assert set(row["phases"]) == {"text", "steps", "vae"}
        assert 0 < sum(row["phases"].values()) <= row["median_s"]
    (report,) = (tmp_path / "out").glob("*-image-*.md")
    assert "| reference+sdpa | " in report.read_text(encoding="utf-8")


def test_each_image_of_a_bench_has_another_prompt_and_every_row_the_same() -> None:
    device = torch.device("cpu")
    first, again, second = (text.prompts(number, device) for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first[0], second[0]), "the empty prompt"
    assert not torch.equal(first[1], second[1])


def test_a_ladder_without_a_row_that_runs_fails(run: Run, tmp_path: Path) -> None:
    arguments = ("--variants", "aoti+graphs", "--rounds", 1, "--out", tmp_path)
    status, out, _ = run("bench", "--family", "sd1:32", *TINY, *arguments)
    assert status == 1
    assert "CUDA graphs need a CUDA device" in out


@pytest.mark.parametrize(("size", "tera"), [(512, 1.607), (768, 4.296), (1024, 9.348)])
def test_operations_of_sd1_are_the_published_ones(size: int, tera: float) -> None:
    """Of one guided step."""
    a = presets.sd1()
    inputs = make_inputs(a, 2, size, 77, torch.device("cpu"), torch.float32)
    assert flops(a, inputs) / 1e12 == pytest.approx(tera, rel=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_the_row_of_torch_compile_takes_no_code_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself torch compiles into a folder whose name is known, and loads what it finds there."""
    folders = {name: tmp_path / name for name in ("temp", "cache")}
    for folder in folders.values():
        folder.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(folders["temp"]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders["cache"]))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(jit, "_lasting_folder", jit._lasting_folder.__wrapped__)
    monkeypatch.setattr(variants, "Reference", lambda *_, **__: torch.nn.SiLU())
    weights = types.SimpleNamespace(parameters={})
    given = types.SimpleNamespace(architecture=None, weights=weights, device=torch.device("cpu"))
    given.inputs = (torch.ones(3, 70),)
    built = variants.VARIANTS["compile"].build(cast("variants.Setup", given))
    assert torch.equal(built.call(), torch.nn.functional.silu(given.inputs[0]))
    assert list(folders["temp"].iterdir()) == []
    if sys.platform == "linux":
        assert list(folders["cache"].rglob("*.so")) != []
