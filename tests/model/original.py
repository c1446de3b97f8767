"""The original UNet code, `ldm` (SD1.x, SD2.x) and `sgm` (SDXL), from the folders in LDM_PATH.

LDM_PATH names one folder or several, separated as in PATH: a clone of
Stability-AI/stablediffusion, which has `ldm/`, and one of Stability-AI/generative-models, which has
`sgm/`. A WebUI has both under `repositories/`. Only the UNet's own files are imported: the
`__init__` files of the packages import training code.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .families import FAMILIES, Config

_PARENTS = ("{0}", "{0}.modules", "{0}.modules.diffusionmodules")
_SDXL = ("sdxl", "sdxl-inpainting", "sdxl-edit", "sdxl-refiner")
_NOT_IN_NEW_SGM = ("image_size", "use_spatial_transformer", "legacy")
ORIGINALS = ("sd1", "sd1-inpainting", "sd1-edit", "sd2", "sd2-inpainting", "sd2-unclip", *_SDXL)


def package(family: str) -> str:
    return "sgm" if family in _SDXL else "ldm"


def folder(name: str) -> Path | None:
    """Return the folder of LDM_PATH that holds the package `ldm` or `sgm`, or None."""
    paths = [Path(p) for p in os.environ.get("LDM_PATH", "").split(os.pathsep) if p]
    return next(
        (p for p in paths if (p / name / "modules/diffusionmodules/openaimodel.py").is_file()), None
    )


def unet_code(name: str) -> types.ModuleType:
    """Import the module `openaimodel` of `ldm` or `sgm`."""
    root = folder(name)
    assert root is not None
    for parent in (p.format(name) for p in _PARENTS):
        if parent not in sys.modules:
            stub = types.ModuleType(parent)
            stub.__path__ = [str(root / parent.replace(".", "/"))]
            sys.modules[parent] = stub
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old code
        return importlib.import_module(f"{name}.modules.diffusionmodules.openaimodel")


def original_config(family: str) -> Config:
    """Return the constructor's arguments for the small size, in the form of the published yaml."""
    c = FAMILIES[family].config(**FAMILIES[family].small)
    width = c["block_out_channels"][0]
    out: dict[str, Any] = {
        "in_channels": c["in_channels"],
        "out_channels": 4,
        "model_channels": width,
        "num_res_blocks": 2,
        "channel_mult": [n // width for n in c["block_out_channels"]],
        "attention_resolutions": [4, 2] if package(family) == "sgm" else [4, 2, 1],
        "context_dim": c["cross_attention_dim"],
        "use_checkpoint": False,
        "transformer_depth": 1,
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
    }
    if package(family) == "sgm":
        out["transformer_depth"] = 4 if family == "sdxl-refiner" else [1, 2, 10]
    if c.get("use_linear_projection"):
        out |= {"num_head_channels": 64, "use_linear_in_transformer": True}
    else:
        out["num_heads"] = 8
    if "projection_class_embeddings_input_dim" in c:
        out |= {
            "num_classes": "sequential",
            "adm_in_channels": c["projection_class_embeddings_input_dim"],
        }
    return out


def original_unet(family: str) -> nn.Module:
    """Build the small UNet by the original code, resizing decoder tensors as the WebUI does."""
    code = unet_code(package(family))
    code.th = _Resizing()  # as modules/sd_hijack_unet.py of the WebUI does
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it calls logger.warn
        known = inspect.signature(code.UNetModel).parameters
        config = original_config(family)
        for name in _NOT_IN_NEW_SGM:
            if name not in known:
                del config[name]
        return code.UNetModel(**config).eval().requires_grad_(False)


class _Resizing:
    """Stands for `torch` in the original file; its `cat` resizes a decoder tensor to its skip."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def cat(self, tensors: list[Tensor], dim: int = 0) -> Tensor:
        h, skip = tensors
        if h.shape[-2:] != skip.shape[-2:]:
            h = F.interpolate(h, skip.shape[-2:], mode="nearest")
        return torch.cat([h, skip], dim)
