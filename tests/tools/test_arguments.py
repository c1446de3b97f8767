"""Help, arguments and devices of all commands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lib_accel.model import presets
from lib_accel.tools.cli.common import family, no_gpu

from .commands import Run, failure

COMMANDS = [
    "",
    "demo",
    "bench",
    "gpu",
    "prebuild",
    "cost",
    "store",
    "store delete",
    "store export",
    "store import",
    "doctor",
]
WITHOUT_EXAMPLE = ("doctor", "store delete", "store export", "store import")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_each_command(run: Run, command: str) -> None:
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert f"usage: python3 -m lib_accel {command}".strip() in out
    assert "(default: None)" not in out
    assert "example" in out or command in WITHOUT_EXAMPLE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fly", "invalid choice: 'fly'"),
        ("store export all", "--to"),
        ("prebuild", "--family"),
        ("demo --size 100", "'100': expected pixels, a multiple of 8 from 64 to 16384"),
        ("demo --size 56", "expected pixels"),
        ("demo --steps 0", "'0': expected a whole number from 1 to 1000000"),
        ("demo --store-mib -1", "expected a whole number"),
        ("demo --backend warp", "invalid choice: 'warp'"),
        ("demo --dtype float8", "invalid choice: 'float8'"),
        (
            "bench --variants reference,warp",
            "warp: expected some of stock, stock+sdpa, reference",
        ),
        ("bench --variants ,", "nothing: expected some of"),
        ("bench webui --url file:///x", "'file:///x': expected one like http://127.0.0.1:7860"),
        ("bench --loras 0,x", "'0,x': expected whole numbers, such as 0,1,10"),
        (
            "bench --family sd9",
            "'sd9' is neither a family (sd1, sd2, sdxl, sdxl-refiner) nor a checkpoint file",
        ),
        ("bench --family sd1:7", "7 model channels give 7 at one level"),
        ("bench --family none.ckpt", "none.ckpt does not exist"),
        (f"prebuild --family {'x' * 5000}", "name too long"),
        (f"demo --steps {'9' * 500}", "expected a whole number from 1 to"),
        ("demo --size 99999999", "a multiple of 8 from 64 to 16384"),
        (f"demo --seed {2**64}", "expected a whole number of 64 bits"),
        ("bench --threads 99999", "expected a whole number from 1 to 1024"),
        ("bench --loras 99999", "expected whole numbers"),
        ("doctor \x1b[31m", r"unrecognized arguments: \x1b[31m"),
        ("fly\x1b[31m", r"invalid choice: 'fly\x1b[31m'"),
        ("bench --family \x1b[31mx.ckpt", r"\x1b[31mx.ckpt does not exist"),
        ("bench --family \udcff.ckpt", r"\udcff.ckpt has a name that is no Unicode"),
        ("bench --family sd1:x", "'x': expected a whole number"),
        (f"prebuild --family {__file__}", "ends in '.py'. Expected .safetensors"),
        ("prebuild --family sd1 --for sm_86", "'sm_86': expected cuda:sm_86 or the like"),
        ("prebuild --family sd1 --for cpu:x86-64-v5", "expected cuda:sm_86 or the like, or cpu:"),
        ("prebuild --family sd1 --torch 2.10", "and there is none"),
        ("prebuild --family vae --backend kernels", "kernels computes UNets alone"),
        ("prebuild --family sd1 --for cuda:sm_86 --windows", "nobody has ever loaded any"),
        ("prebuild --family sd1 --for cpu:x86-64-v2 --backend kernels", "is for cards alone"),
        ("prebuild --family sd1 --for cuda:sm_86 --device cpu", "is a device of this machine"),
        (
            "prebuild --family sd1 --backend tensorrt --for cuda:sm_90",
            "cuda:sm_90: TensorRT for RTX serves 7.5, 8.0, 8.6, 8.9, and 12.0 and later",
        ),
    ],
)
def test_wrong_arguments_are_named(run: Run, arguments: str, message: str) -> None:
    assert message in failure(run(*arguments.split()), status=2)


@pytest.mark.parametrize("command", ["demo", "bench", "prebuild --family sd1:32"])
def test_a_missing_device_is_refused(
    run: Run,
    tmp_path: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = failure(run(*command.split(), "--device", "cuda"))
    assert message.startswith("--device cuda: this torch (")
    assert no_gpu() in message
    message = failure(run(*command.split(), "--device", "warp"))
    assert "--device warp: torch knows no such kind of device" in message
    message = failure(run(*command.split(), "--device", "meta"))
    assert "--device meta: torch cannot compute there (" in message


def test_an_output_folder_that_cannot_be_made_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert failure(run("demo", "--out", tmp_path / "file" / "x")).startswith("Not a directory: ")
    assert failure(run("bench", "--out", tmp_path / "file")).startswith("File exists: ")


def test_more_than_fits_into_memory_is_refused(run: Run, tmp_path: Path) -> None:
    folders = ("--out", tmp_path, "--store", tmp_path / "store")
    message = failure(run("demo", "--size", 64, "--channels", 320000, "--device", "cpu", *folders))
    assert message.startswith("out of memory (")


def test_a_user_or_a_link_that_leads_nowhere_is_refused(run: Run, tmp_path: Path) -> None:
    message = failure(run("cost", "--webui", "~nosuchuser/x", "--checkpoint", "x"), status=2)
    assert "~nosuchuser/x" in message
    if os.name == "posix":  # elsewhere not everybody may make links
        loop = tmp_path / "loop"
        loop.symlink_to(loop)
        assert str(loop) in failure(run("cost", "--webui", loop, "--checkpoint", "x"))


def test_families_can_have_another_width_and_other_inputs() -> None:
    assert family("sd1") == presets.sd1()
    assert family("sdxl:64+9") == presets.sdxl(64, in_channels=9)
