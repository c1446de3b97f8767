"""The command `cost`, with a stand-in for the WebUI; and the extension it runs in a WebUI."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lib_accel.runtime.accelerated import accelerated
from lib_accel.tools.checkpoints.reading import save_random_checkpoint
from lib_accel.tools.webui.cost import CHANGES, PROBE

from ..standin.host import Host, in_place
from ..store.kit import OTHERS, posix
from .checkpoint_files import TINY
from .commands import Run, failure

STANDIN = Path(__file__).parent / "standin_webui.py"


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    """The folder of a stand-in WebUI, with a checkpoint."""
    folder = tmp_path / "webui"
    (folder / "models" / "Stable-diffusion").mkdir(parents=True)
    shutil.copy(STANDIN, folder / "launch.py")
    checkpoint = folder / "models" / "Stable-diffusion" / "tiny.safetensors"
    save_random_checkpoint(checkpoint, TINY, torch.float16, seed=0)
    return folder


def cost(run: Run, webui: Path, *more: object) -> Any:
    base = ("--webui", webui, "--checkpoint", "tiny.safetensors", "--python", sys.executable)
    return run("cost", *base, "--pictures", 3, "--store", webui / "store", *more)


@posix
@pytest.mark.parametrize("others", OTHERS)
def test_a_temporary_folder_where_others_can_replace_the_extensions_is_refused(
    run: Run, webui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    OTHERS[others](temp)
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    assert "exchange" in failure(cost(run, webui, "--flags=--fail"))


@pytest.mark.slow
def test_the_cost_is_measured_against_a_webui_without_the_extension(run: Run, webui: Path) -> None:
    children = psutil.Process().children()
    status, out, _ = cost(run, webui, "--json")
    assert status == 0
    result = json.loads(out)
    assert (result["state"], result["backend"], result["step_ms"]) == ("ready", "aoti", 0.5)
    assert result["startup_s"] == {"without": 3.0, "with": 3.0, "extension": 0.25}
    assert result["off_ms"]["without"] >= 20
    assert result["off_ms"]["off"] >= 20
    assert abs(result["off_ms"]["more"]) < 50
    for seconds in result["lora_change_s"].values():
        assert list(seconds) == list(CHANGES)
        assert all(s > 0.05 for s in seconds.values())
    assert psutil.Process().children() == children, "no WebUI is left running"


@pytest.mark.slow
def test_the_cost_is_printed_in_words(run: Run, webui: Path) -> None:
    status, out, _ = cost(run, webui)
    assert status == 0
    assert "switched on: 0.50 ms a step" in out
    assert "start-up: 0.25 s, of 3.0 s in all" in out
    assert "| with the extension | " in out


def test_a_webui_that_does_not_start_is_shown(run: Run, webui: Path) -> None:
    status, out, err = cost(run, webui, "--flags=--fail")
    assert (status, out) == (1, "")
    assert "error: the WebUI did not start:\nRuntimeError: this WebUI fails" in err


def test_what_is_missing_is_named(run: Run, webui: Path, tmp_path: Path) -> None:
    here = ("cost", "--checkpoint", "tiny.safetensors", "--webui")
    assert "holds no launch.py" in failure(run(*here, tmp_path))
    assert "no Python at" in failure(run(*here, webui))
    absent = tmp_path / "python"
    assert f"{absent} does not exist" in failure(run(*here, webui, "--python", absent))
    absent = tmp_path / "absent.safetensors"
    base = ("cost", "--webui", webui, "--python", sys.executable)
    assert f"{absent} does not exist, here or in " in failure(run(*base, "--checkpoint", absent))


def test_the_probe_times_a_call_without_its_computing(tmp_path: Path) -> None:
    with in_place():
        host = Host("--accel-store", str(tmp_path), "--accel-backend", "eager")
        host.witness()  # nothing is computed: compared with the WebUI's own step, that differs
        host.load()
        before = host.call()
        probe = types.ModuleType("probe")
        exec(PROBE, vars(probe))
        overhead: Callable[..., dict[str, float]] = vars(probe)["overhead"]
        computed: list[object] = []
        output_layer = accelerated(host.unet).engine.clean.out
        output_layer.register_forward_hook(lambda *_: computed.append(None))
        assert overhead(calls=20)["ms"] > 0
        assert not computed
        assert host.status()["difference"] is None
        assert host.counters()["host_calls"] == 0
        assert torch.equal(host.call(), before), "computing goes on as before"
        assert computed
        host.opts.set("accel_enable", False)
        host.service.shutdown()
        assert overhead(calls=1)["ms"] is None
        host.close()
