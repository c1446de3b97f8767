"""The command line: every command as a user or a script runs it, on tiny models and a store filled by hand."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.model import presets
from lib_accel.runtime.lora_files import random_deltas, save_lora
from lib_accel.store.store import ArtifactStore
from lib_accel.tools.bench.measure import flops
from lib_accel.tools.checkpoint import save_random_checkpoint
from lib_accel.tools.cli import bench as cli_bench
from lib_accel.tools.cli import gpu as cli_gpu
from lib_accel.tools.cli import main
from lib_accel.tools.cli.common import family

from ..threads import one_thread  # noqa: F401

TINY = ("--size", "64", "--device", "cpu")
KEYS = [hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b")]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit status, standard output and standard error of a command."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as e:  # argparse: wrong arguments, --help
            status = int(e.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Two artifacts as a compiler would have left them."""
    store = ArtifactStore(tmp_path / "store")
    code = tmp_path / "unit.pt2"
    code.write_bytes(b"native code" * 100)
    recipe = {
        "units": ["ResBlock-0"],
        "dtype": "float16",
        "machine": {"device_name": "Test GPU", "torch": "2.13.0"},
    }
    for key in KEYS:
        store.put(key, recipe, {"ResBlock-0.pt2": code})
    return store


def failure(result: tuple[int, str, str], status: int = 1) -> str:
    """The one line a failed command says; nothing on standard output, no traceback."""
    got, out, err = result
    assert (got, out) == (status, "")
    lines = [line for line in err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0].partition("error: ")[2]


# -- the whole


@pytest.mark.parametrize(
    "command", ["", "demo", "bench", "prebuild", "store", "store export", "store import", "doctor"]
)
def test_help_teaches(run, command):
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert "usage: python -m lib_accel" in out
    assert "(default: None)" not in out
    assert "example" in out or command in ("doctor", "store export", "store import")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "COMMAND"),
        ("fly", "invalid choice: 'fly'"),
        ("store", "ACTION"),
        ("store export all", "--to"),
        ("prebuild", "--family"),
        ("demo --size 100", "'100': expected pixels, a multiple of 8 and at least 64"),
        ("demo --size 56", "expected pixels"),
        ("demo --steps 0", "'0': expected a whole number, 1 or more"),
        ("demo --store-mib -1", "expected a whole number"),
        ("demo --backend warp", "invalid choice: 'warp'"),
        ("demo --dtype float8", "invalid choice: 'float8'"),
        ("bench --variants reference,warp", "warp: expected some of reference, reference+sdpa"),
        ("bench --variants ,", "nothing: expected some of"),
        ("bench --loras 0,x", "'0,x': expected whole numbers, as 0,1,10"),
        (
            "bench --family sd9",
            "'sd9' is neither a family (sd1, sd2, sdxl, sdxl-refiner) nor a checkpoint file",
        ),
        ("bench --family sd1:7", "7 model channels give 7 at one level"),
        ("bench --family sd1:x", "'x': expected a whole number"),
        (f"prebuild --family {__file__}", "ends in '.py'. Expected .safetensors"),
    ],
)
def test_wrong_arguments(run, arguments, message):
    assert message in failure(run(*arguments.split()), status=2)


@pytest.mark.parametrize("command", ["demo", "bench", "prebuild --family sd1:32", "doctor"])
def test_devices_that_are_not_there(run, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no CUDA device; try `python -m lib_accel doctor`" in failure(
        run(*command.split(), "--device", "cuda")
    )
    assert "--device warp: no kind of device torch knows" in failure(
        run(*command.split(), "--device", "warp")
    )


def test_an_output_folder_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").touch()
    assert failure(run("demo", "--out", tmp_path / "file" / "x")).startswith("Not a directory: ")
    assert failure(run("bench", "--out", tmp_path / "file")).startswith("File exists: ")


def test_families():
    assert family("sd1") == presets.sd1()
    assert family("sdxl:64+9") == presets.sdxl(64, in_channels=9)


# -- doctor


def test_doctor_as_a_program(tmp_path, root):
    command = [
        sys.executable,
        "-m",
        "lib_accel",
        "doctor",
        "--json",
        "--device",
        "cpu",
        "--store",
        str(tmp_path / "store"),
    ]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    result = json.loads(done.stdout)
    assert done.returncode == (0 if result["healthy"] else 1)
    assert {finding["level"] for finding in result["findings"]} <= {"ok", "note", "problem"}
    assert any("torch" in finding["what"] for finding in result["findings"])
    assert not (tmp_path / "store").exists()  # looking changes nothing


def test_doctor_finds_a_store_that_cannot_be_used(run, tmp_path):
    (tmp_path / "store").touch()
    status, out, _ = run("doctor", "--device", "cpu", "--store", tmp_path / "store")
    assert status == 1
    assert "PROBLEM  the artifact store cannot be used\n         -> " in out


# -- store


def test_list_verify_clear(run, store):
    status, out, _ = run("store", "list", "--store", store.root)
    assert status == 0
    assert f"{KEYS[0][:12]}  " in out
    assert "1 units, float16, torch 2.13.0, Test GPU, built here" in out
    assert out.endswith(f"2 artifacts, 0.0 MB in {store.root}\n")
    listed = json.loads(run("store", "list", "--store", store.root, "--json")[1])
    assert sorted(row["key"] for row in listed["artifacts"]) == sorted(KEYS)

    assert run("store", "verify", "--store", store.root)[:2] == (0, "2 good, 0 damaged\n")
    file = store.root / KEYS[0] / "ResBlock-0.pt2"
    file.write_bytes(file.read_bytes().replace(b"n", b"N", 1))
    status, out, _ = run("store", "verify", "--store", store.root, "--json")
    assert status == 1
    assert list(json.loads(out)["damaged"]) == [KEYS[0]]

    assert (
        json.loads(run("store", "clear", "--store", store.root, "--json")[1])["bytes_freed"]
        > 2 * 1100
    )
    assert (
        run("store", "list", "--store", store.root)[1] == f"0 artifacts, 0.0 MB in {store.root}\n"
    )
    assert "holds no usable artifact" in failure(
        run("store", "export", "all", "--to", store.root / "x.zip", "--store", store.root)
    )


def test_export_and_import(run, store, tmp_path):
    archive, key, other = tmp_path / "fleet.zip", tmp_path / "fleet.key", tmp_path / "other"
    status, out, err = run(
        "store", "export", "all", "--to", archive, "--key", key, "--store", store.root
    )
    assert (status, out) == (0, f"2 artifacts written to {archive} (signed)\n")
    assert "made a new signing key" in err
    assert "give --key FILE" in failure(run("store", "import", archive, "--store", other))
    status, out, _ = run("store", "import", archive, "--key", key, "--store", other)
    assert status == 0
    assert "imported from fleet.zip, signature checked" in out

    unsigned = tmp_path / "unsigned.zip"
    status, out, _ = run(
        "store", "export", KEYS[0][:8], "--to", unsigned, "--store", store.root, "--json"
    )
    assert json.loads(out) == {"file": str(unsigned), "keys": [KEYS[0]], "signed": False}
    assert "it is not signed" in failure(
        run("store", "import", unsigned, "--key", key, "--store", tmp_path / "third")
    )
    status, out, _ = run(
        "store", "import", unsigned, "--allow-unsigned", "--store", tmp_path / "third", "--json"
    )
    assert json.loads(out)["keys"] == [KEYS[0]]


def test_store_failures(run, store, tmp_path):
    assert f"expected exactly one of: {KEYS[0][:12]}" in failure(
        run("store", "export", "ff", "--to", tmp_path / "x.zip", "--store", store.root)
    ).replace(KEYS[1][:12] + ", ", "")
    absent = tmp_path / "absent"
    assert "No such file" in failure(
        run("store", "import", absent, "--allow-unsigned", "--store", store.root)
    )
    assert "Could not read the signing key" in failure(
        run("store", "import", absent, "--key", absent, "--store", store.root)
    )
    (tmp_path / "file").write_bytes(b"no zip")
    assert "is not a whole zip" in failure(
        run("store", "import", tmp_path / "file", "--allow-unsigned", "--store", store.root)
    )
    for action in ("list", "verify", "clear"):
        assert "Not a directory" in failure(run("store", action, "--store", tmp_path / "file"))


# -- demo


def test_demo(run, tmp_path):
    arguments = (
        "demo",
        *TINY,
        "--channels",
        "32",
        "--steps",
        "2",
        "--backend",
        "eager",
        "--out",
        tmp_path,
        "--store",
        tmp_path / "store",
    )
    status, out, err = run(*arguments, "--json")
    result = json.loads(out)
    assert status == 0
    assert "backend eager: eager" in err
    assert result == json.loads((tmp_path / "report.json").read_text()) | {
        "report": result["report"]
    }
    assert Path(result["report"]).read_text().startswith("<!doctype html>")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert set(result["seconds_per_step"]) == {"off", "on", "off, LoRA", "on, LoRA"}
    assert (result["same_after_lora"], result["error_ok"], result["compiles_for_lora"]) == (
        True,
        True,
        0,
    )
    assert result["error_on"] < 1e-5
    assert result["lora_effect"] > 0.01  # the LoRA is seen, with acceleration too
    assert result["latent_difference_lora"] < 1e-4


def test_demo_of_a_file(run, tmp_path):
    """An inpainting model with a `y` at a size where levels round up, two LoRAs, half precision."""
    architecture = presets.sdxl_refiner(64, in_channels=9, context_dim=64, adm_channels=32)
    save_random_checkpoint(tmp_path / "model.safetensors", architecture, torch.float16, seed=0)
    save_lora(
        tmp_path / "style.safetensors", architecture, random_deltas(architecture, rank=2, seed=3)
    )
    lora = (
        "--lora",
        f"{tmp_path / 'style.safetensors'}:0.5",
        "--lora",
        f"{tmp_path / 'style.safetensors'}:-0.2",
    )
    status, out, _ = run("demo", "--checkpoint", tmp_path / "model.safetensors", *lora, "--size", 72, "--steps", 1, "--dtype", "bfloat16",
                         "--device", "cpu", "--backend", "eager", "--out", tmp_path / "out", "--store", tmp_path / "store")  # fmt: skip
    assert status == 0
    assert "inpainting" in out.splitlines()[0]
    assert "removed again, the picture is bit-identical" in out


def test_demo_refuses(run, tmp_path):
    base = ("demo", *TINY, "--backend", "eager", "--out", tmp_path / "out", "--channels", "32")
    assert "does not exist" in failure(run(*base, "--checkpoint", tmp_path / "absent.safetensors"))
    assert "is a folder" in failure(run(*base, "--checkpoint", tmp_path))
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    assert "is damaged or is no safetensors file" in failure(
        run(*base, "--checkpoint", tmp_path / "cut.safetensors")
    )
    assert "cannot be read as safetensors" in failure(
        run(*base, "--lora", tmp_path / "absent.safetensors")
    )
    foreign = presets.sdxl(64, context_dim=64, adm_channels=32)
    save_lora(tmp_path / "xl.safetensors", foreign, random_deltas(foreign, rank=1, seed=0))
    assert "the LoRA is for another architecture" in failure(
        run(*base, "--lora", tmp_path / "xl.safetensors")
    )
    assert "holds no UNet; it looks like a LoRA" in failure(
        run(*base, "--checkpoint", tmp_path / "xl.safetensors")
    )
    assert "expected a multiple of 32" in failure(run(*base[:-1], "33"))


@pytest.mark.usefixtures("packaging")
def test_demo_with_a_store_that_cannot_be_used(run, tmp_path):
    """Images are made all the same, and the reason is told."""
    (tmp_path / "store").touch()
    status, out, _ = run("demo", *TINY, "--channels", "32", "--steps", "1", "--backend", "aoti", "--out", tmp_path / "out",
                         "--store", tmp_path / "store")  # fmt: skip
    assert status == 0
    assert "backend eager" in out.splitlines()[0]
    assert out.splitlines()[1].startswith("note: aoti: Could not look for artifact")


# -- bench


def bench(run: Run, tmp_path: Path, *arguments: object) -> dict[str, Any]:
    status, out, _ = run(
        "bench",
        "--family",
        "sd1:32",
        *TINY,
        "--out",
        tmp_path / "out",
        "--store",
        tmp_path / "store",
        "--json",
        *arguments,
    )
    assert status == 0
    return json.loads(out)


def test_bench(run, tmp_path):
    pytest.importorskip("diffusers")
    variants = "reference,reference+sdpa,eager,eager+graphs"
    result = bench(
        run, tmp_path, "--variants", variants, "--rounds", 2, "--loras", "0,2", "--profile"
    )
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == variants.split(",")
    assert rows["eager+graphs"]["median_s"] is None
    assert "CUDA graphs need a CUDA device" in rows.pop("eager+graphs")["note"]
    for row in rows.values():
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert (
            row["error"] < 1e-5
        )  # reference rows are an independent implementation over the same parameters
        assert row["peak_bytes"] >= result["weight_bytes"]
        assert row["of_matmul_rate"] == pytest.approx(
            result["flops"] / row["median_s"] / result["matmul_flops_per_s"]
        )
    assert [row["loras"] for row in result["loras"]] == [0, 2]
    assert set(result["loras"][1]["seconds"]) == {"reference", "reference+sdpa", "eager"}
    names = {path.suffix: path for path in (tmp_path / "out").iterdir()}
    assert json.loads(names[".json"].read_text()) == result
    assert "| reference+sdpa | " in names[".md"].read_text()
    assert result["profiled"] == ["eager"]
    assert result["kernels"][0]["ms"] >= result["kernels"][1]["ms"] > 0
    assert "aten::" in names[".md"].read_text()


def test_bench_in_bfloat16(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        cli_bench, "matmul_rate", lambda *_: 1e12
    )  # seconds, and measured for real above
    row = bench(run, tmp_path, "--variants", "eager", "--rounds", 1, "--dtype", "bfloat16")["rows"][
        0
    ]
    assert 1e-4 < row["error"] < 0.1


def test_bench_without_a_row_that_runs(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "matmul_rate", lambda *_: 1e12)
    status, out, _ = run(
        "bench",
        "--family",
        "sd1:32",
        *TINY,
        "--variants",
        "aoti+graphs",
        "--rounds",
        1,
        "--out",
        tmp_path,
    )
    assert status == 1
    assert "CUDA graphs need a CUDA device" in out


def test_gpu_dry_run(run, tmp_path, monkeypatch):
    """The steps themselves take minutes of compiling: here two without, which differ in nothing but their name."""
    step = dataclasses.replace(cli_gpu.STEPS[2], variants="eager")
    monkeypatch.setattr(cli_gpu, "STEPS", (step, dataclasses.replace(step, name="the same again")))
    monkeypatch.setattr(cli_bench, "matmul_rate", lambda *_: 1e12)
    status, out, _ = run(
        "gpu",
        "--dry-run",
        "--rounds",
        1,
        "--device",
        "cpu",
        "--out",
        tmp_path,
        "--store",
        tmp_path / "store",
    )
    assert status == 0
    assert f"## {step.name}" in out
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.is_file()) == [
        ".json",
        ".json",
        ".md",
        ".md",
    ]


@pytest.mark.parametrize(("size", "tera"), [(512, 1.607), (768, 4.296), (1024, 9.348)])
def test_operations_are_the_published_ones(size, tera):
    """SD1.5, one guided step."""
    a = presets.sd1()
    inputs = cli_bench.make_inputs(
        a, argparse.Namespace(batch=2, size=size, tokens=77), torch.device("cpu"), torch.float32
    )
    assert flops(a, inputs) / 1e12 == pytest.approx(tera, rel=0.01)
