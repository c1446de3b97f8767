"""Pictures that are made off and on: payloads, settings, and how each must be served."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .pictures import MIN_DB, picture

LONG = "very detailed, " * 60
ANY = "any"


@dataclass(frozen=True)
class Case:
    name: str
    payload: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "tinyA"
    route: str = "txt2img"
    host: str | None = None  # part of the reason, where no UNet call may be accelerated
    partly: str | None = None  # part of the reason, where some layers may not be
    differs: bool | None = (
        True  # True: must not be the model's plain picture; False: must be just that, to the bit
    )
    min_db: float = MIN_DB


def _same(name: str, *args: Any, **kw: Any) -> Case:
    return Case(name, *args, differs=False, **kw)


def _image(**more: Any) -> dict[str, Any]:
    return {"init_images": [picture()], "denoising_strength": 0.7, **more}


MASK = {"mask": picture(mask=True), "inpainting_fill": 1}
HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": "Latent"}
SAMPLERS = [
    "Euler a",
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM++ 3M SDE",
    "DDIM",
    "DDIM CFG++",
    "PLMS",
    "UniPC",
    "LMS",
    "Heun",
    "LCM",
    "Restart",
]
SAMPLERS += ["DPM2 a"]

CASES = [
    _same("plain"),
    Case("wide", {"width": 192}),
    Case("odd", {"width": 136, "height": 200}),
    Case("img2img", _image(), route="img2img"),
    Case("inpaint, ordinary checkpoint", _image(**MASK), route="img2img"),
    Case("inpaint, only masked", _image(**MASK, inpaint_full_res=True), route="img2img"),
    Case("hires", HIRES),
    Case("hires, own prompt with a LoRA", {**HIRES, "hr_prompt": "a dog <lora:loraA:1>"}),
    Case("hires, own checkpoint", {**HIRES, "hr_checkpoint_name": "tinyB"}),
    _same("after hires"),
    Case("refiner", {"refiner_checkpoint": "tinyB", "refiner_switch_at": 0.5, "steps": 4}),
    Case(
        "refiner and LoRA",
        {
            "prompt": "a cat <lora:loraA:1>",
            "refiner_checkpoint": "tinyB",
            "refiner_switch_at": 0.5,
            "steps": 4,
        },
    ),
    Case(
        "refiner, two kept in memory",
        {"refiner_checkpoint": "tinyB", "refiner_switch_at": 0.5, "steps": 4},
        {"sd_checkpoints_limit": 2},
    ),
    _same("after refiner"),
    Case("batch size 3", {"batch_size": 3}),
    Case("batch count 2", {"n_iter": 2}),
    Case("AND", {"prompt": "a cat AND a dog :0.7"}),
    Case("AND, batch 2", {"prompt": "a cat AND a dog AND a house", "batch_size": 2}),
    Case("unequal lengths", {"negative_prompt": LONG}),
    Case("unequal lengths, long prompt", {"prompt": f"a cat, {LONG}"}),
    Case("prompt editing", {"prompt": "a photo of a [cat:dog:0.5]", "steps": 4}),
    Case("prompt editing to a long one", {"prompt": f"a photo of a [cat:{LONG}:0.5]", "steps": 4}),
    Case("BREAK", {"prompt": "a cat BREAK a dog"}),
    Case("emphasis", {"prompt": "a (photo:1.3) of a [cat]"}),
    Case("clip skip", {}, {"CLIP_stop_at_last_layers": 2}),
    *(Case(f"sampler {name}", {"sampler_name": name, "steps": 4}) for name in SAMPLERS),
    Case(
        "sampler DPM adaptive", {"sampler_name": "DPM adaptive"}, min_db=45
    ),  # chooses its steps by what it computes
    Case("scheduler Karras", {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}),
    Case("no guidance", {"cfg_scale": 1}),
    Case("NGMS", {"steps": 6}, {"s_min_uncond": 4.0}),
    Case("skip_early_cond", {"steps": 6}, {"skip_early_cond": 0.4}),
    Case("cond and uncond apart", {}, {"batch_cond_uncond": False}, differs=None),
    Case("tiling", {"tiling": True}, partly="tiling"),
    Case("variation seed", {"subseed": 7, "subseed_strength": 0.4}),
    Case("resize from", {"seed_resize_from_w": 192, "seed_resize_from_h": 128}),
    Case("another VAE", {}, {"sd_vae": "tinyVAE.safetensors"}),
    _same("VAE back"),
    Case("LoRA", {"prompt": "a photo of a cat <lora:loraA:1>"}),
    Case("LoRA, weaker", {"prompt": "a photo of a cat <lora:loraA:0.5>"}),
    Case("LoRA, te and unet", {"prompt": "a photo of a cat <lora:loraA:te=0.2:unet=0.9>"}),
    Case("LoRA, unet only", {"prompt": "a photo of a cat <lora:loraA:0:1>"}),
    Case("two LoRAs", {"prompt": "a photo of a cat <lora:loraA:0.7> <lora:loraB:-0.5>"}),
    _same("LoRAs removed"),
    Case(
        "LoRA, functional",
        {"prompt": "a photo of a cat <lora:loraA:1>"},
        {"lora_functional": True},
        host="applied at run time",
    ),
    _same("functional, no LoRA", {}, {"lora_functional": True}),
    Case("hypernetwork", {"prompt": "a photo of a cat <hypernet:tinyHN:1>"}, host="hypernetwork"),
    _same("hypernetwork removed"),
    Case(
        "token merging", {"width": 256, "height": 256}, {"token_merging_ratio": 0.5}, partly="Block"
    ),
    Case("token merging, hires only", {**HIRES}, {"token_merging_ratio_hr": 0.5}, partly=ANY),
    _same("token merging over"),
    Case(
        "HyperTile",
        {"width": 256, "height": 256},
        {"hypertile_enable_unet": True, "hypertile_max_tile_unet": 64},
        partly="forward",
    ),
    Case("HyperTile over", partly="forward", differs=None),  # its hooks stay
    _same("inpainting checkpoint", model="tinyInpaint"),
    Case("inpainting checkpoint, inpaint", _image(**MASK), route="img2img", model="tinyInpaint"),
    Case(
        "inpainting checkpoint, LoRA",
        _image(**MASK, prompt="a cat <lora:loraA:1>"),
        route="img2img",
        model="tinyInpaint",
    ),
    _same("SD2", model="tinySD2"),
    Case("SD2 batch 2", {"batch_size": 2, "width": 192}, model="tinySD2"),
    _same("SD2 v-prediction", model="tinySD2v"),
    _same("SDXL", model="tinySDXL"),
    Case("SDXL hires", HIRES, model="tinySDXL"),
    Case("SDXL LoRA", {"prompt": "a photo of a cat <lora:loraXL:1>"}, model="tinySDXL"),
    _same("SDXL LoRA removed", model="tinySDXL"),
    Case("SDXL long negative", {"negative_prompt": LONG}, model="tinySDXL"),
]
