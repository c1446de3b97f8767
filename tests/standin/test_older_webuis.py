"""WebUIs that lack what later ones have."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from .host import ROOT, in_place


def test_before_1_10_there_is_no_taiyi() -> None:
    """There a text encoder has to be CLIP's. All else is accelerated."""
    with in_place():
        clip = importlib.import_module("modules.sd_hijack_clip")
        del clip.TextConditionalModel
        config = importlib.import_module("modules.sd_models_config")
        before = config.find_checkpoint_config
        settings = importlib.import_module("lib_accel.host.pages.settings")
        settings.register(lambda: None)
        hooks = importlib.import_module("lib_accel.host.taiyi.hooks")
        hooks.taiyi.register()
        assert config.find_checkpoint_config is before
        assert not hooks.is_taiyi(object())


def test_before_1_6_nothing_is_registered(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "script_callbacks.py").touch()  # without any function to register with
    script = ROOT / "scripts" / "accel.py"
    code = f"import runpy, sys; runpy.run_path({str(script)!r}); print('lib_accel' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Acceleration: this WebUI is older than 1.6.0")
    assert (lines[1:], done.stderr) == (["False"], "")


def test_before_1_8_scripts_do_not_keep_their_controls() -> None:
    with in_place():
        webui = importlib.import_module("lib_accel.host.webui")
        script = SimpleNamespace(args_from=0, args_to=2)
        assert webui._arguments(script, [True, "a"]) == [True, ("str", [])]
