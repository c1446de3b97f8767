"""The UNet of the stand-in is called as the real one is: by the same names, in their order."""

from __future__ import annotations

import ast
from pathlib import Path

from ..standin.host import FORGE_TREE

FILES = (
    "backend/nn/unet.py",
    "ldm_patched/ldm/modules/diffusionmodules/openaimodel.py",
    "ldm_patched/ldm/modules/attention.py",
)
OTHERWISE_NAMED = {"IntegratedUNet2DConditionModel": "UNetModel"}  # in reForge


def _forwards(file: Path) -> dict[str, list[str]]:
    """Return the names of the parameters of each class's `forward`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {
        each.name: [a.arg for a in method.args.args]
        for each in ast.walk(tree)
        if isinstance(each, ast.ClassDef)
        for method in each.body
        if isinstance(method, ast.FunctionDef) and method.name == "forward"
    }


def test_layers_are_called_alike(forge: Path) -> None:
    real: dict[str, list[str]] = {}
    for file in filter(Path.exists, (forge / name for name in FILES)):
        real |= _forwards(file)
    ours = _forwards(FORGE_TREE / "backend" / "nn" / "unet.py")
    for name in ("ResBlock", "SpatialTransformer", "Upsample", "Downsample"):
        known = real[name]
        # reForge gives a ResBlock no options
        assert known == ours[name][: len(known)], name
    whole = "IntegratedUNet2DConditionModel"
    theirs = real.get(whole) or real[OTHERWISE_NAMED[whole]]
    assert theirs == ours[whole]
