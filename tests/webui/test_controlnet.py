"""sd-webui-controlnet, unchanged, with control models of the real size: off against on.

ACCEL_CONTROLNET names the extension's folder (v1.1.455). ACCEL_CONTROLNET_MODEL names an SD1
checkpoint of the real width, by default real15: the extension knows only 320 channels. Pictures are
small, so that a step takes a second on two cores. ACCEL_CONTROLNET_XL names an SDXL checkpoint of
the real size, for the last test alone (20 GB of memory).
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from ..control_files import CLIP_WIDTH, controlnet, t2i_adapter, write_all
from .conftest import Launch, rows
from .host import DEFAULTS, Server
from .pictures import MIN_DB, Pictures, picture

EXTENSION = os.environ.get("ACCEL_CONTROLNET")
XL = os.environ.get("ACCEL_CONTROLNET_XL")
MODEL = os.environ.get("ACCEL_CONTROLNET_MODEL", "real15")
pytestmark = pytest.mark.skipif(
    not EXTENSION, reason="NOT RUN: set ACCEL_CONTROLNET to the folder of sd-webui-controlnet"
)


def unit(model: str = "None", module: str = "none", **more: Any) -> dict[str, Any]:
    return {
        "enabled": True,
        "image": picture(),
        "module": module,
        "model": model,
        "weight": 1.0,
        **more,
    }


def image_embedding() -> str:
    """Return what the CLIP preprocessor of an IP-Adapter would; the extension accepts it."""
    out = io.BytesIO()
    torch.save(
        {"image_embeds": torch.randn(1, CLIP_WIDTH, generator=torch.Generator().manual_seed(5))},
        out,
    )
    return base64.b64encode(out.getvalue()).decode()


A, B, ADAPTER, LORA = (
    unit("control_a"),
    unit("control_b", "canny"),
    unit("t2iadapter_a"),
    unit("control_lora_a"),
)
REFERENCE = unit(module="reference_only")
IMAGE_PROMPT = unit("ip-adapter_sd15", "ip-adapter_clip_h", ipadapter_input=[image_embedding()])


@dataclass(frozen=True)
class Case:
    name: str
    units: Sequence[dict[str, Any]]
    payload: dict[str, Any] = field(default_factory=dict)
    controls: int = 0  # control models that are accelerated
    partly: bool = False  # some layers may not be accelerated


CASES = [
    Case("one", [A], controls=1),
    Case("one again, weaker", [{**A, "weight": 0.4}], controls=1),
    Case("preprocessor", [B], controls=1),
    Case("two", [A, B], controls=2),
    Case(
        "three", [A, B, ADAPTER], controls=1
    ),  # the extension keeps two models, the last ones: one of them is an adapter
    Case("T2I adapter", [ADAPTER]),
    Case("ControlLoRA", [LORA]),
    Case(
        "start and end",
        [{**A, "guidance_start": 0.3, "guidance_end": 0.7}],
        {"steps": 4},
        controls=1,
    ),
    Case(
        "my prompt is more important",
        [{**A, "control_mode": "My prompt is more important"}],
        controls=1,
    ),
    Case(
        "ControlNet is more important",
        [{**A, "control_mode": "ControlNet is more important"}],
        controls=1,
    ),
    Case("pixel perfect", [{**B, "pixel_perfect": True}], controls=1),
    Case("low VRAM", [{**A, "low_vram": True}], controls=1),
    Case("batch of 2", [A], {"batch_size": 2}, controls=1),
    Case("another size", [A], {"width": 192, "height": 136}, controls=1),
    Case(
        "hires fix",
        [B],
        {
            "enable_hr": True,
            "hr_scale": 1.5,
            "denoising_strength": 0.6,
            "hr_upscaler": "Latent",
            "steps": 2,
        },
        controls=1,
    ),
    Case("LoRA", [A], {"prompt": "a photo of a cat <lora:real:1>"}, controls=1),
    Case(
        "inpaint",
        [unit("control_a", "inpaint_only", image={"image": picture(), "mask": picture(mask=True)})],
        controls=1,
    ),
    Case("reference", [REFERENCE], partly=True),
    Case("reference, AdaIN", [unit(module="reference_adain+attn")], partly=True),
    Case("reference and ControlNet", [REFERENCE, A], controls=1, partly=True),
    Case("IP-Adapter", [IMAGE_PROMPT], partly=True),
    Case(
        "IP-Adapter, weaker, at the end",
        [{**IMAGE_PROMPT, "weight": 0.6, "guidance_start": 0.5}],
        {"steps": 4},
        partly=True,
    ),
    Case("IP-Adapter and ControlNet", [IMAGE_PROMPT, A], controls=1, partly=True),
]


@pytest.fixture(scope="module")
def controlled(launch: Launch, webui: Path, folder: Path) -> Server:
    from safetensors.torch import save_file

    from ..network_files import network, shapes_of

    checkpoint = webui / "models" / "Stable-diffusion" / f"{MODEL}.safetensors"
    (folder / "control").mkdir()
    write_all(folder / "control", checkpoint)
    save_file(network("lora", shapes_of(checkpoint)), folder / "lora" / "real.safetensors")
    if (xl := checkpoint.with_name("tinySDXL.safetensors")).exists():
        save_file(
            t2i_adapter(shapes_of(xl), 15, inputs=768),
            folder / "control" / "t2iadapter_xl.safetensors",
        )
    return _controlled(launch, folder / "control", MODEL)


def _controlled(launch: Launch, models: Path, checkpoint: str) -> Server:
    assert EXTENSION
    server = launch(
        "--controlnet-dir", str(models), model=checkpoint, others=[Path(EXTENSION).resolve()]
    )
    server.options(**DEFAULTS)
    server.wait_ready()
    server.names = {
        n.split(" [")[0]: n for n in server.get("/controlnet/model_list?update=true")["model_list"]
    }
    return server


@pytest.fixture(scope="module")
def plain(controlled: Server) -> Pictures:
    return controlled.make()


def _with(server: Server, case: Case) -> dict[str, Any]:
    units = [{**u, "model": server.names.get(u["model"], u["model"])} for u in case.units]
    return {**case.payload, "alwayson_scripts": {"controlnet": {"args": units}}}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_off_against_on(controlled: Server, plain: Pictures, case: Case) -> None:
    c = controlled.compare(**_with(controlled, case))
    reason, controls = c.reason, c.status["control_models"]
    rows.append(f"ControlNet {case.name:30} {controls} control models  {c.line}")
    assert c.decibels >= MIN_DB, rows[-1]
    assert (c.calls > 0, c.host_calls, c.compiles, c.on.served) == (True, 0, 0, True), rows[-1]
    assert c.off.decibels(plain) < 45, "the control changed nothing"
    assert controls >= case.controls, rows[-1]
    assert "drives the UNet" in reason or "replaced" in reason, rows[-1]
    assert ("not accelerated" in reason) == case.partly, rows[-1]


def test_without_control_the_picture_is_the_plain_one(controlled: Server, plain: Pictures) -> None:
    """After all of it, the plain picture to the bit, from the whole UNet again."""
    c = controlled.compare()
    assert c.on.same(plain)
    assert c.status["reason"] is None
    assert c.host_calls == 0


def test_switching_off_between_controlled_pictures(controlled: Server, plain: Pictures) -> None:
    with_control = _with(controlled, CASES[0])
    on = controlled.make(**with_control)
    controlled.options(accel_enable=False)
    off, bare = controlled.make(**with_control), controlled.make()
    controlled.options(accel_enable=True)
    assert not off.served
    assert off.decibels(on) >= MIN_DB
    assert bare.decibels(plain) >= MIN_DB
    assert controlled.make(**with_control).same(on)


@pytest.mark.parametrize(
    "case",
    [
        Case("SDXL, T2I adapter", [unit("t2iadapter_xl")]),
        Case("SDXL, reference", [REFERENCE], partly=True),
    ],
    ids=lambda c: c.name,
)
def test_sdxl(controlled: Server, case: Case) -> None:
    if "t2iadapter_xl" not in controlled.names:
        pytest.skip("there is no checkpoint tinySDXL")
    controlled.use("tinySDXL")
    test_off_against_on(controlled, controlled.make(), case)


@pytest.mark.skipif(
    not XL,
    reason="NOT RUN: set ACCEL_CONTROLNET_XL to the name of an SDXL checkpoint of the real size",
)
def test_sdxl_of_real_size(launch: Launch, webui: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    from ..network_files import shapes_of

    models = folder / "control-xl"
    models.mkdir()
    shapes = shapes_of(webui / "models" / "Stable-diffusion" / f"{XL}.safetensors")
    made = {
        "control_a": controlnet(shapes, 11),
        "t2iadapter_a": t2i_adapter(shapes, 15, inputs=768),
    }
    for name in list(made):
        save_file(
            {k: t.half().contiguous() for k, t in made.pop(name).items()},
            models / f"{name}.safetensors",
        )
    assert XL
    server = _controlled(launch, models, XL)
    plain = server.make()
    for case in (
        Case("SDXL, one", [A], controls=1),
        Case(
            "SDXL, ControlNet is more important",
            [{**A, "control_mode": "ControlNet is more important"}],
            controls=1,
        ),
        Case("SDXL, T2I adapter", [ADAPTER]),
        Case("SDXL, reference", [REFERENCE], partly=True),
    ):
        test_off_against_on(server, plain, case)
    test_without_control_the_picture_is_the_plain_one(server, plain)
