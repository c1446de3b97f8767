"""`prebuild --for`: code for machines that are not this one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from lib_accel.compile import machine
from lib_accel.compile.backends.aoti.backend import Aoti
from lib_accel.compile.backends.aoti.worker_environment import worker_environment
from lib_accel.compile.backends.kernels import nvrtc
from lib_accel.compile.backends.kernels.backend import recipes_of
from lib_accel.compile.backends.tensorrt import libraries
from lib_accel.compile.target import Target
from lib_accel.errors import AccelError
from lib_accel.model import presets
from lib_accel.model.vae.network import DECODER, ENCODER, Half, Network
from lib_accel.runtime.vae import VaeEngine
from lib_accel.store import ArtifactStore
from lib_accel.tools.cli import prebuild
from lib_accel.tools.laboratory import elsewhere

from .commands import Run, failure

CARD = ("--family", "sd1:32", "--for", "cuda:sm_86")
pytestmark = pytest.mark.skipif(not machine.is_x86_64(), reason="levels of x86-64")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled for, by what stands for NVRTC, which torch for CPUs does not bring."""
    made: list[str] = []

    def compile_kernels(arch: str, dtype: torch.dtype) -> bytes:
        made.append(f"{arch} {dtype}")
        return b"code"

    monkeypatch.setattr(nvrtc, "_Nvrtc", lambda: nvrtc_of_cuda_12())
    monkeypatch.setattr(nvrtc, "compile_kernels", compile_kernels)
    return made


class nvrtc_of_cuda_12:
    def version(self) -> str:
        return "12.8"

    def architectures(self) -> list[int]:
        return [75, 80, 86, 89, 90, 120]


@pytest.mark.parametrize("windows", [False, True])
def test_kernels_for_a_card_and_a_system_elsewhere_come_unchecked(
    run: Run, tmp_path: Path, compiled: list[str], windows: bool
) -> None:
    given = ("prebuild", *CARD, "--backend", "kernels", "--torch", "2.10+cu128")
    given += ("--store", tmp_path, "--json", *(["--windows"] if windows else []))
    status, out, err = run(*given)
    assert status == 0, err
    (built,) = json.loads(out)["artifacts"]
    assert (built["for"], built["compiled"], built["units"]) == ("cuda:sm_86", 19, 19)
    assert compiled == ["sm_86 torch.float16"]
    there = machine.Machine(
        **{
            **vars(machine.probe(torch.device("cpu"))),
            "torch": "2.10.0+cu128",
            "device_type": "cuda",
            "capability": "8.6",
            **({"platform": "win32-amd64"} if windows else {}),
        }
    )
    card = torch.device("cuda:0")
    target = Target.of_unet(presets.sd1(32), torch.float16, card, there)
    for key in recipes_of(target):
        artifact = ArtifactStore(tmp_path).get(key)
        assert artifact is not None, "the machine there asks for another"
        assert artifact.verdict is None
        assert artifact.manifest["origin"] == "built without a card, for compute capability 8.6"
    assert json.loads(run(*given)[1])["artifacts"][0]["compiled"] == 0


def test_kernels_are_for_one_build_of_torch(run: Run, tmp_path: Path) -> None:
    given = ("prebuild", *CARD, "--backend", "kernels", "--torch", "2.10", "--store", tmp_path)
    assert "2.10 does not say which" in failure(run(*given))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", ["2", "2.10; rm", "latest", "../2.10"])
def test_what_is_no_version_is_not_given_to_pip(run: Run, tmp_path: Path, version: str) -> None:
    given = ("prebuild", *CARD, "--torch", version, "--store", tmp_path)
    assert "expected a version such as 2.10 or 2.10.0+cu128" in failure(run(*given))


def test_tensorrt_needs_a_card_to_be_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(libraries, "version", lambda: "1.7.1")
    given = ("prebuild", "--family", "sd1:32", "--backend", "tensorrt", "--store", tmp_path)
    assert "needs --for here: there is no card" in failure(run(*given), status=2)


def test_the_units_of_a_vae_are_those_that_a_webui_asks_for() -> None:
    order = prebuild.Order("", Aoti(), None, elsewhere.CPU, torch.float32)
    target = order.target(prebuild._network("vae:32"))
    asked = set[str]()
    for kind in (DECODER, ENCODER):
        half = Half.preset(kind, 32)
        network = Network(half).adopt(
            {name: nn.Parameter(torch.zeros(shape)) for name, shape in half.shapes().items()}
        )
        module = nn.Module()
        for name, parameter in network.named_parameters():
            *parents, last = name.split(".")
            home = module
            for parent in parents:
                if not hasattr(home, parent):
                    home.add_module(parent, nn.Module())
                home = getattr(home, parent)
            home.register_parameter(last, parameter)
        asked |= {*VaeEngine(module).target.keys.values()}
    assert {*target.keys.values()} == asked


def test_a_lower_level_of_processors_is_compiled_for_and_checked_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "instruction_set", lambda: "x86-64-v3")
    place = elsewhere.processor("x86-64-v2")
    target = Target.of_unet(presets.sd1(32), torch.float32, elsewhere.CPU, place.machine)
    assert target.machine.identity()["capability"] == "x86-64-v2"
    assert place.elsewhere.checks
    made = worker_environment(tmp_path, target.machine) | dict(place.elsewhere.variables)
    assert made["ATEN_CPU_CAPABILITY"] == "default"
    if os.name == "posix" and target.machine.cxx:
        wrapper = Path(made["CXX"]).read_text()
        assert "-msse4.2" in wrapper
        assert "-mavx2" not in wrapper.split("level=")[1].splitlines()[0]


def test_a_higher_level_of_processors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "instruction_set", lambda: "x86-64-v3")
    with pytest.raises(AccelError, match=r"this processor has x86-64-v3 and could not check"):
        elsewhere.processor("x86-64-v4")
