"""Pictures that are made off and on, and how each must be served."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..webui.cases import LONG
from ..webui.pictures import picture

HIRES = {
    "enable_hr": True,
    "hr_scale": 1.5,
    "denoising_strength": 0.7,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 3,
    "hr_additional_modules": ["Use same choices"],
}


@dataclass(frozen=True)
class Case:
    """`script`: the beginning of a script's title, with its arguments. `led`: part of the reason,
    where the UNet's own forward leads from layer to layer."""

    name: str
    payload: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    script: tuple[str, list[Any]] | None = None
    route: str = "txt2img"
    led: str | None = None


def _image(**more: Any) -> dict[str, Any]:
    return {"init_images": [picture()], "denoising_strength": 0.7, **more}


CONTROL = {
    "enabled": True,
    "module": "None",
    "weight": 1.0,
    "image": picture(),
    "pixel_perfect": False,
    "processor_res": 128,
}
"""A unit of ControlNet, without its model: that has a hash in its name."""

CASES = [
    Case("plain"),
    Case("LoRA", {"prompt": "a cat <lora:wl1:0.8>"}),
    Case("two LoRAs", {"prompt": "a cat <lora:wl1:0.8> <lora:wl2:-0.5>"}),
    Case("LoRAs removed"),
    Case("hires", HIRES),
    Case("hires, own prompt with a LoRA", {**HIRES, "hr_prompt": "a dog <lora:wl1:1>"}),
    Case("img2img", _image(), route="img2img"),
    Case("inpaint", _image(mask=picture(mask=True), inpainting_fill=1), route="img2img"),
    Case("ControlNet", script=("controlnet", [CONTROL])),
    Case("long prompt", {"prompt": f"a cat, {LONG}"}),
    Case("cfg 1", {"cfg_scale": 1}),
    Case("odd", {"width": 136, "height": 120}),
    Case("batch", {"batch_size": 2, "n_iter": 2}),
    Case("AND", {"prompt": "a cat AND a dog :0.7"}),
    Case("PAG", script=("perturbedattentionguidance", [True, 3, 0, 0.0, 1.0]), led="attn1"),
    Case("SAG", script=("selfattentionguidance", [True, 0.5, 2, 1.0]), led="attn1"),
    Case("token merging", settings={"token_merging_ratio": 0.5}, led="attn1_patch"),
    Case(
        "HRFix",
        script=("kohya hrfix", [True, 3, 2, 0, 0.8, True, "bicubic", "bicubic"]),
        led="output_block_patch",
    ),
    Case("MultiDiffusion", script=("multidiffusion", [True, "MultiDiffusion", 96, 96, 48, 4])),
    Case("plain again"),
]
