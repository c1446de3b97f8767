"""Code that was compiled elsewhere: checked on arrival, and never served unchecked."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.compile.accuracy import Verdict
from lib_accel.compile.source_digest import source_digest
from lib_accel.compile.target import Target
from lib_accel.errors import AccelError
from lib_accel.store import ArtifactStore
from lib_accel.tools.gpu import code
from lib_accel.tools.gpu.jobs import JOBS
from lib_accel.tools.gpu.launches import beside_the_model
from lib_accel.tools.gpu.setting import Setting
from lib_accel.tools.gpu.summary import text
from lib_accel.tools.gpu.teller import Teller

from .. import tiny

FIRST = JOBS[0]


def setting(folder: Path, **fields: Any) -> Setting:
    carried = str(folder / "carried")
    of = Setting("cpu", "float32", str(folder / "store"), "", 64, carried, (), 1, True, False)
    return replace(of, **fields)


def told(call: Callable[[Teller], object]) -> dict[str, Any]:
    """Return the last result that a job tells."""
    reader, writer = os.pipe()
    teller = Teller(writer)
    with os.fdopen(reader) as lines:
        try:
            call(teller)
        finally:
            teller._out.close()
        results = [json.loads(line) for line in lines]
    return [message["result"] for message in results if "result" in message][-1]


def carry(target: Target, folder: Path, files: Callable[[Any], dict[str, Path]]) -> None:
    store = ArtifactStore(folder / "carried")
    for unit in target.units:
        store.put(target.recipe(unit), files(unit), made_with={"cpu": "x86-64-v2"})


@pytest.fixture
def carried(tiny_store: Path, tmp_path: Path) -> Target:
    """Unchecked code of the tiny UNet, as the laboratory exports it."""
    target, store = setting(tmp_path).target(FIRST), ArtifactStore(tiny_store)
    assert target.units == tiny.target().units

    def files(unit: Any) -> dict[str, Path]:
        artifact = store.get(target.keys[unit])
        assert artifact is not None
        return {name: artifact.path / name for name in artifact.files}

    carry(target, tmp_path, files)
    return target


@pytest.fixture
def unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """Carried artifacts without code in them, for tests in which none is called."""
    (tmp_path / "code").write_bytes(b"code")
    target = setting(tmp_path).target(FIRST)
    carry(target, tmp_path, lambda _: {"code": tmp_path / "code"})
    monkeypatch.setattr(code, "load_unit", lambda *_: None)
    monkeypatch.setattr(code, "_compile", lambda *_: None)
    return target


def test_carried_code_is_checked_and_then_serves(carried: Target, tmp_path: Path) -> None:
    with torch.no_grad():
        result = told(lambda tell: code.get_code(FIRST, setting(tmp_path), tell))
    assert result["carried"] is None
    for unit in result["units"]:
        assert unit["origin"] == "carried"
        assert max(unit["compiled"]) <= 1.25 * max(unit["eager"])
    e = tiny.ready(tmp_path / "store")
    tiny.check(e, tiny.inputs())


def test_unchecked_code_serves_nobody_before_its_check(carried: Target, tmp_path: Path) -> None:
    with contextlib.closing(tiny.engine(tmp_path / "carried", compile=False)) as e:
        e.prepare()
        assert e.status.state != "ready"


def test_carried_code_that_is_inaccurate_is_not_stored(
    unloaded: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Verdict((0.5,) * 4, (1e-3,) * 4)
    monkeypatch.setattr(code, "check_unit", lambda *_, **__: wrong)
    result = told(lambda tell: code.get_code(FIRST, setting(tmp_path), tell))
    assert all("carried, but inaccurate: relative error 5" in u["problem"] for u in result["units"])
    assert ArtifactStore(tmp_path / "store").list() == []


def test_what_ended_the_process_before_is_not_tried_again(
    unloaded: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(map(code.describe, unloaded.units))
    result = told(lambda t: code.get_code(FIRST, setting(tmp_path, without=names), t))
    problems = {unit["problem"] for unit in result["units"]}
    assert problems == {"its carried code ended the process"}


def test_code_for_another_torch_is_named(tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(b"code")
    target = setting(tmp_path).target(FIRST)
    other = replace(target, machine=replace(target.machine, torch="2.11.0+cu130"))
    carry(other, tmp_path, lambda _: {"code": tmp_path / "code"})
    carried = ArtifactStore(tmp_path / "carried")
    assert code.unfit(other, carried) is None
    assert code.unfit(target, carried) == (
        f"5 of 5 units of {target.name} are not in the carried code, which was made for "
        f"torch '2.11.0+cu130', here '{torch.__version__}'"
    )


def test_the_table_shows_what_was_checked() -> None:
    unit = {"unit": "ResBlock 1 -> 2", "origin": "carried", "compiled": [1e-3], "eager": [2e-3]}
    identity = {"device_name": "A card", "torch": "2.11", "dry_run": False}
    entry = {"state": "done", "seconds": 3.0, "why": "", "result": {"units": [unit]}}
    data = {"identity": identity, "notes": ["a note"], "jobs": {FIRST.name: entry}}
    shown = text(data, JOBS)
    assert "| ResBlock 1 -> 2 | carried | 1.00e-03 | 2.00e-03 |  |" in shown
    assert "- a note" in shown


def test_launches_are_set_beside_those_of_the_model(tmp_path: Path) -> None:
    kernels = {
        "triton_poi_fused__to_copy_add_cat_convolution_mean_mul_4": 300,
        "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x64": 59,
        "void cudnn::ops::nchwToNhwcKernel<__half, __half, float>": 2,
        "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT": 200,
        "void cutlass::Kernel2<cutlass_80_wmma_tensorop_f16_s161616gemm_f16_32x32_64x1_tn>": 30,
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>": 30,
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64": 2,
    }
    rows = [{"name": name, "launches": float(n)} for name, n in kernels.items()]
    result = {"size": 512, "batch": 2, "tokens": 77, "dtype": "float16", "kernels": {"aoti": rows}}
    classes = {"GEGLU": {"launches": 16}, "cat": {"launches": 12}, "attention": {"launches": 32}}
    row = {"backend": "aoti", "launches": 60, "classes": classes}
    of_model = {"family": "sd1", "arch": "sm_90", "source": source_digest(), "rows": [row]}
    file = tmp_path / "model.json"
    file.write_text(json.dumps({**result, **of_model}))
    (found,) = beside_the_model(result, "sd1", [str(file)])
    assert found == {
        "row": "aoti",
        "launches": 623,
        "classes": {"memory-bound": 300, "convolution": 61, "matrix product": 230, "attention": 32},
        "model": {
            "arch": "sm_90",
            "of_this_source": True,
            "launches": 60,
            "classes": {"memory-bound": 28, "attention": 32},
        },
    }
    for other, family in (({**result, "size": 768}, "sd1"), (result, "sdxl")):
        assert beside_the_model(other, family, [str(file)])[0]["model"] is None
    file.write_text("[]")
    with pytest.raises(AccelError, match="is not what `bench --model --json` prints"):
        beside_the_model(result, "sd1", [str(file)])


def test_a_unit_that_spoils_the_card_ends_its_process(
    unloaded: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access every call of the process fails: the next one leaves the unit out."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(code, "check_unit", fail)
    told_at: list[str] = []
    monkeypatch.setattr(Teller, "at", lambda _, what: told_at.append(what))
    told(lambda tell: code.get_code(FIRST, setting(tmp_path), tell))
    assert told_at[-1] == "", "the card is as before: every unit is tried"
    monkeypatch.setattr(code, "synchronize", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        told(lambda tell: code.get_code(FIRST, setting(tmp_path), tell))
    assert told_at[-1] == code.describe(unloaded.units[0])
