"""LoRAs of every type in a real WebUI: exact merges, same pictures, removed without a trace."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file

from lib_accel.runtime.lora.files import random_deltas, save_lora
from lib_accel.tools.checkpoints.reading import open_checkpoint
from lib_accel.tools.webui.client import Refused

from ..network_files import KINDS, network, shapes_of
from .conftest import HERE, Launch, rows
from .host import DEFAULTS, Server
from .pictures import MIN_DB, Pictures

BIASED = "full-bias"
BAD = ["bad-cut", "bad-empty", "bad-pickle", "bad-nan", "bad-names", "bad-shapes", "not-there"]


@pytest.fixture(scope="module")
def probed(launch: Launch) -> Server:
    server = launch(others=[HERE / "probe"])
    server.options(**DEFAULTS)
    server.wait_ready()
    return server


@pytest.fixture(scope="module")
def plain(probed: Server) -> Pictures:
    return probed.make()


def _check_seen_and_removed(server: Server, plain: Pictures, name: str, prompt: str) -> None:
    """Check that the network changes the picture, off as on, and leaves nothing behind.

    Compiled code serves every call.
    """
    c = server.compare(prompt=prompt)
    rows.append(f"{name} {c.line}")
    assert c.decibels >= MIN_DB, rows[-1]
    assert (c.calls > 0, c.host_calls, c.compiles) == (True, 0, 0), rows[-1]
    assert c.on.decibels(plain) < 45, "the network changed nothing"
    assert server.make().same(plain), "something was left"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "names", [*KINDS, "lora,loha,dora", "ia3,lora,boft,full", ",".join(["lora"] * 10)]
)
def test_merging_is_as_exact_as_the_lora_extensions(probed: Server, names: str, dtype: str) -> None:
    """Against float64, in all layers that the networks change, relative to the change."""
    strengths = ",".join(
        ["0.7", "-0.4", "1", "0.9", "0.3", "0.1", "0.2", "0.3", "1", "-1"][: names.count(",") + 1]
    )
    e = probed.get(f"/accel-probe/errors?names={names}&strengths={strengths}&dtype={dtype}")
    errors = f"ours {e['ours']:.1e}  host {e['host']:.1e}  bias {e['bias']:.1e}"
    rows.append(f"{names[:32]:32} {dtype:9} {e['layers']:3} layers  {errors}  failed {e['failed']}")
    assert e["layers"], e
    assert not e["failed"]["ours"], e
    assert e["ours"] <= e["host"] * 1.02, e  # in float32 both are as exact as rounding allows
    assert e["bias"] < 1e-2, e


@pytest.mark.parametrize("kind", [k for k in KINDS if k != BIASED])
def test_every_type_changes_the_picture(probed: Server, plain: Pictures, kind: str) -> None:
    _check_seen_and_removed(
        probed, plain, f"LoRA type {kind:22}", f"a photo of a cat <lora:{kind}:0.8>"
    )


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a cat <lora:lora:te=0.3:unet=0.7>",
        "a photo of a cat <lora:lora:1:0.8:2>",
        "a photo of a cat <lora:loha:1:dyn=2>",
        "a photo of a cat <lora:with-text:0.5>",
        "a photo of a cat <lora:with-text:0:1>",
        "an accelword of a cat <lora:with-text:0.5>",
    ],
)
def test_every_form_of_a_tag(probed: Server, plain: Pictures, prompt: str) -> None:
    """Two strengths, a lower rank, the text encoder's part, an embedding in the file."""
    _check_seen_and_removed(probed, plain, f"{prompt:45}", prompt)


def test_a_network_may_add_a_bias_to_a_layer_without_one(probed: Server, plain: Pictures) -> None:
    """The WebUI itself fails at the second step of such a picture."""
    prompt = f"a photo of a cat <lora:{BIASED}:0.8>"
    probed.options(accel_enable=False)
    with pytest.raises(Refused, match="no backup bias found"):
        probed.make(prompt=prompt)
    probed.options(accel_enable=True)
    on = probed.make(prompt=prompt)
    rows.append(
        f"LoRA type {BIASED:22} made with acceleration; the WebUI alone fails; "
        f"{on.decibels(plain):.1f} dB from the plain picture"
    )
    assert on.served
    assert 10 < on.decibels(plain) < 45
    assert probed.make(prompt=prompt).same(on)
    assert probed.make().same(plain)


@pytest.mark.parametrize("model", ["tinySD2", "tinySD2v", "tinySDXL", "tinyInpaint"])
def test_loras_of_other_families(probed: Server, webui: Path, folder: Path, model: str) -> None:
    """In files with the usual names: diffusers' for SD2, the checkpoint's own for SDXL."""
    checkpoint = webui / "models" / "Stable-diffusion" / f"{model}.safetensors"
    if not checkpoint.exists():
        pytest.skip(f"there is no checkpoint {model}")
    path = folder / "lora" / f"{model}-lora.safetensors"
    architecture = open_checkpoint(checkpoint).architecture()
    if "SD2" in model:
        save_lora(path, architecture, random_deltas(architecture, rank=4, seed=1))
    else:
        save_file(network("lora", shapes_of(checkpoint)), path)
    probed.post("/sdapi/v1/refresh-loras")
    probed.use(model)
    _check_seen_and_removed(
        probed, probed.make(), f"LoRA of {model:24}", f"a photo of a cat <lora:{path.stem}:0.8>"
    )
    probed.use("tinyA")


def test_random_sets_in_any_order(probed: Server, plain: Pictures) -> None:
    """Each picture is the one with acceleration off, which is switched in between."""
    r, possible = random.Random(3), [k for k in KINDS if k != BIASED]
    for i in range(12):
        tags = " ".join(
            f"<lora:{k}:{r.choice([-0.5, 0.3, 1])}>" for k in r.sample(possible, r.randint(0, 3))
        )
        c = probed.compare(prompt=f"a photo of a cat {tags}")
        rows.append(f"random LoRAs {i:2} {c.decibels:5.1f} dB  {tags}")
        assert c.decibels >= MIN_DB, rows[-1]
        assert c.host_calls == 0
        if r.random() < 0.3:
            probed.options(accel_enable=False)
            probed.make(prompt=f"a photo of a cat <lora:{r.choice(possible)}:1>")
            probed.options(accel_enable=True)
    assert probed.make().same(plain)


@pytest.mark.parametrize(
    "tags",
    [
        *(f"<lora:{b}:1>" for b in BAD),
        "<lora:lora:0.3> <lora:lora:0.6>",
        "<lora:lora:0>",
        "<lora:lora:1e6>",
        "<lora:lora:-1e6>",
    ],
)
def test_a_bad_file_or_strength_is_treated_as_the_webui_does(
    probed: Server, plain: Pictures, tags: str
) -> None:
    """Afterwards nothing is left."""
    made = []
    for enabled in (False, True):
        probed.options(accel_enable=enabled)
        try:
            made.append(probed.make(prompt=f"a photo of a cat {tags}"))
        except Refused as e:
            made.append(e)
    off, on = made
    if isinstance(off, Refused) or isinstance(on, Refused):
        assert type(off) is type(on), made
        rows.append(f"bad LoRA {tags:32} refused alike: {str(off)[:80]}")
    else:
        rows.append(f"bad LoRA {tags:32} {on.decibels(off):5.1f} dB")
        assert on.decibels(off) >= MIN_DB or "1e6" in tags, rows[
            -1
        ]  # where nothing is left of the picture, nothing is left to compare
    assert probed.make().same(plain)


@pytest.mark.parametrize("tag", ["", "<lora:locon:0.4>", "<lora:norm:1>"])
def test_marks_that_are_reset_while_backups_stay(probed: Server, plain: Pictures, tag: str) -> None:
    """The Lora extension leaves what is merged where it wants nothing; else it starts at base."""
    made = []
    for enabled in (False, True):
        probed.options(accel_enable=enabled)
        probed.make(prompt="a photo of a cat <lora:locon:1>")
        probed.get("/accel-probe/reset_marks")
        prompts = [
            f"a photo of a cat {tag}",
            "a photo of a cat <lora:norm:0.5>",
            "a photo of a cat",
        ]
        made.append([probed.make(prompt=prompt) for prompt in prompts])
    for off, on in zip(*made, strict=True):
        rows.append(f"marks reset, then {tag:18} {on.decibels(off):5.1f} dB")
        assert on.decibels(off) >= MIN_DB, rows[-1]
    assert made[1][0].decibels(plain) < 45
    assert made[1][-1].same(plain)


def test_a_changed_file_is_read_again(probed: Server, plain: Pictures, folder: Path) -> None:
    path = folder / "lora" / "changing.safetensors"
    path.write_bytes((folder / "lora" / "lora.safetensors").read_bytes())
    probed.post("/sdapi/v1/refresh-loras")
    prompt = "a photo of a cat <lora:changing:1>"
    first = probed.compare(prompt=prompt)
    probed.make()
    time.sleep(1.1)
    path.write_bytes((folder / "lora" / "loha.safetensors").read_bytes())
    second = probed.compare(prompt=prompt)
    assert min(first.decibels, second.decibels) >= MIN_DB
    assert first.on.decibels(second.on) < 45
    assert probed.make().same(plain)
