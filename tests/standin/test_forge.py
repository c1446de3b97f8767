"""Forge and reForge: the same compiled code, and options that say what takes part in a call."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel.model.specs import ResBlock, SpatialTransformer

from ..tiny import TINY, inputs
from .backends import serve
from .forge_host import ControlNet, Counting, Forge
from .host import FORGE_TREE, ROOT, TREE, counted, in_place

TRANSFORMERS = sum(isinstance(spec, SpatialTransformer) for _, spec in TINY.layers())
RESBLOCKS = sum(isinstance(spec, ResBlock) for _, spec in TINY.layers())


@pytest.fixture
def forge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forge]:
    """A stand-in for Forge with a loaded model that compiled code serves."""
    serve(monkeypatch, Counting)
    monkeypatch.setattr(Counting, "computed", Counter(), raising=False)
    with in_place(FORGE_TREE):
        forge = Forge("--accel-store", str(tmp_path))
        forge.load()
        yield forge
        forge.close()


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_a_plain_call_is_computed_as_a_whole(forge: Forge) -> None:
    expected = forge.call(unet=forge.new_unet())
    with counted(forge, accelerated_calls=1, host_calls=0):
        assert close(forge.call(), expected)
    assert forge.status()["reason"] is None
    assert Counting.computed["Embedding"] == 1  # which only a whole call computes


@pytest.mark.parametrize(("height", "width"), [(17, 15), (16, 19)])
def test_an_odd_size_is_resized_before_the_convolution(
    forge: Forge, height: int, width: int
) -> None:
    given = inputs(height=height, width=width)
    assert close(forge.call(given), forge.call(given, forge.new_unet()))
    assert Counting.computed["Embedding"] == 1


def test_a_lora_that_the_host_has_merged_is_followed(forge: Forge) -> None:
    forge.call()
    expected = forge.new_unet()
    for unet in (forge.unet, expected):
        layer = unet.get_submodule("middle_block.1.proj_in")
        layer.weight = nn.Parameter(layer.weight * 2, requires_grad=False)
    with counted(forge, binds=1, compiles=0, lora_merges=0, accelerated_calls=1):
        assert close(forge.call(), forge.call(unet=expected))


def test_the_host_says_what_is_computed_in(forge: Forge) -> None:
    """Half precision as it is stored, while the sampler computes in float32."""
    unet = forge.load(dtype=torch.float16)
    plain = forge.new_unet().half().float()
    with counted(forge, accelerated_calls=1):
        assert close(forge.call(unet=unet), forge.call(unet=plain))


BLOCK = ("input", 1)
EMPTY: Any = {"patches": {"attn1_patch": []}, "wrappers": {"diffusion_model": {}}}


@pytest.mark.parametrize(
    ("options", "transformers"),
    [
        (EMPTY, TRANSFORMERS),
        ({"patches": {"output_block_patch": [lambda h, skip: (h * 2, skip)]}}, TRANSFORMERS),
        ({"patches": {"attn1_patch": [lambda n: n * 2]}}, 0),
        ({"patches_replace": {"attn1": {BLOCK: lambda n: n * 2}}}, TRANSFORMERS - 1),
    ],
    ids=["empty", "between", "inside", "replaced"],
)
def test_options_decide_which_layers_are_compiled(
    forge: Forge, options: Any, transformers: int
) -> None:
    expected = forge.call(unet=forge.new_unet(), **options)
    with counted(forge, accelerated_calls=1, host_calls=0):
        assert close(forge.call(**options), expected)
    assert Counting.computed["SpatialTransformer"] == transformers
    assert Counting.computed["ResBlock"] == RESBLOCKS
    reason = forge.status()["reason"] or ""
    assert reason.startswith("extensions take part") == (options is not EMPTY)


def control() -> dict[str, list[Tensor | None]]:
    """Return what a ControlNet and a T2I adapter add to a call of the usual size."""
    sizes = [16, 16, 8, 8]  # of what the input blocks of TINY return
    given: list[Tensor | None] = [torch.randn(2, 64, size, size) for size in sizes]
    middle: list[Tensor | None] = [torch.randn(2, 64, 8, 8)]
    return {"input": [*given[:1:-1], given[1], None], "middle": middle, "output": given}


def test_what_a_controlnet_adds_is_added_in_a_whole_call(forge: Forge) -> None:
    added = control()
    expected = forge.call(unet=forge.new_unet(), control=added)
    assert not close(forge.call(), expected)
    Counting.computed.clear()
    with counted(forge, accelerated_calls=1, host_calls=0):
        assert close(forge.call(control=added), expected)
    assert Counting.computed["Embedding"] == 1
    assert forge.status()["reason"] is None
    forge.witness()  # the host's own code takes the tensors out of the lists
    assert close(forge.call(control=added), expected)
    assert forge.status()["difference"] is None


def test_a_controlnet_beside_patches_is_added_by_the_host(forge: Forge) -> None:
    patches = {"output_block_patch": [lambda h, skip: (h * 2, skip)]}
    added = {"output": control()["output"]}
    expected = forge.call(unet=forge.new_unet(), control=added, patches=patches)
    assert close(forge.call(control=added, patches=patches), expected)
    assert "(output_block_patch, control): compiled layer by layer" in forge.status()["reason"]


@torch.inference_mode()
def test_control_networks_of_the_linked_list_run_on_the_same_units(forge: Forge) -> None:
    network = ControlNet(forge.new_unet(2))
    given = torch.randn(2, 4, 16, 16), torch.randn(2, TINY.emb_channels), inputs()[2]
    expected = network(*given)
    listed = [SimpleNamespace(control_model=network), SimpleNamespace(t2i_model=None)]
    forge.model.forge_objects.unet.list_controlnets = lambda: listed
    forge.call(control=control())
    assert forge.status()["control_models"] == 1
    Counting.computed.clear()
    assert close(network(*given), expected)
    assert Counting.computed["SpatialTransformer"] == 2


def test_the_memory_of_cuda_graphs_is_named_before_sampling(forge: Forge) -> None:
    asked: list[int] = []
    patcher = forge.model.forge_objects.unet
    patcher.add_extra_preserved_memory_during_sampling = asked.append
    forge.service.before_sampling(forge.model)
    assert not asked
    forge.service.current().engine.graphs = SimpleNamespace(bytes=5, clear=lambda **_: None)
    forge.service.before_sampling(forge.model)
    assert asked == [5]
    assert forge.model.forge_objects.unet is not patcher, "the patcher serves other images too"


@pytest.mark.parametrize("name", ["group_norm_wrapper", "wrappers", "something_new"])
def test_options_that_are_unknown_are_left_to_the_host(forge: Forge, name: str) -> None:
    with counted(forge, accelerated_calls=0, host_calls=1):
        forge.call(**{name: {"a": [1]}})
    assert forge.status()["reason"].endswith(f"more than compiled code knows: {name}")
    assert not Counting.computed


def test_what_changes_weights_at_each_call_is_left_to_the_host(forge: Forge) -> None:
    layer = forge.unet.get_submodule("middle_block.1.proj_in")
    layer.forge_online_loras = {"weight": [1]}
    with counted(forge, accelerated_calls=0, host_calls=1):
        forge.call()
    assert "LoRAs are applied at each call" in forge.status()["reason"]
    del layer.forge_online_loras
    with counted(forge, accelerated_calls=1):
        forge.call()


def test_before_a_model_is_loaded_nothing_is_asked_of_it(forge: Forge) -> None:
    forge.module("modules.sd_models").model_data.sd_model = SimpleNamespace()
    assert forge.status()["reason"] == "no model is loaded yet"


def test_a_witnessed_step_gives_both_ways_the_same(forge: Forge) -> None:
    forge.witness()
    expected = forge.call(unet=forge.new_unet())
    assert close(forge.call(), expected)
    status = forge.status()
    assert (status["witnessed"], status["difference"]) == (1, None)
    assert status["worst_error"] < 1e-5


@pytest.mark.parametrize("name", ["access-token-x", "access-token-unsecure-x"])
def test_the_login_of_gradio_4_is_known_by_the_name_of_its_cookie(forge: Forge, name: str) -> None:
    forge.app.auth, forge.app.tokens, forge.app.cookie_id = object(), {"good": "me"}, "x"
    for cookie, code in ((f"{name}=good", 200), (f"{name}=bad", 401), ("access-token=good", 401)):
        assert forge.app.ask("GET", "/accel/v1/status", {"Cookie": cookie})[0] == code


NEO = ["backend/logging.py", "modules_forge/__init__.py"]
CLASSIC = ["ldm_patched/__init__.py", "modules_forge/__init__.py"]


@pytest.mark.parametrize(
    ("hosts", "name"), [(NEO, "Forge Neo"), (CLASSIC, "Forge Classic"), ([], "this WebUI")]
)
def test_an_unknown_host_gets_one_sentence(tmp_path: Path, hosts: list[str], name: str) -> None:
    for file in ("modules/script_callbacks.py", "modules/options.py", *hosts):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    script = ROOT / "scripts" / "accel.py"
    code = (
        f"import runpy, sys; sys.path.append({str(ROOT)!r}); runpy.run_path({str(script)!r}); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, *rest = done.stdout.splitlines()
    assert "nothing is accelerated" in first
    assert first.startswith(f"Acceleration: {name} ")
    assert (rest, done.stderr) == (["False"], "")


def test_each_host_is_known_by_what_can_be_imported() -> None:
    for trees, name in (((), "A1111"), ((FORGE_TREE,), "Forge")):
        with in_place(*trees):
            assert type(importlib.import_module("lib_accel.host.webui").host).__name__ == name
    assert TREE.exists()
