"""Every family of UNets, at its real size, is described from names and shapes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lib_accel.errors import UnsupportedArchitecture
from lib_accel.model.architecture import Architecture
from lib_accel.model.specs import ResBlock, SpatialTransformer, spec_from_dict, spec_to_dict
from lib_accel.model.unet import UNet

from ..threads import one_thread  # noqa: F401  (a fixture)
from .families import FAMILIES, Shape, ldm_parameters, real_shapes, real_unet, shapes, small_unet


def transformers(architecture: Architecture) -> list[tuple[str, SpatialTransformer]]:
    return [
        (name, layer)
        for name, layer in architecture.layers()
        if isinstance(layer, SpatialTransformer)
    ]


@pytest.fixture
def small() -> dict[str, Shape]:
    """Shapes of a small SD1 UNet, to change at will."""
    return shapes(ldm_parameters(small_unet("sd1")))


@pytest.mark.parametrize("family", FAMILIES)
def test_real_sizes_are_described_as_published(family: str) -> None:
    names = real_shapes(family)
    architecture = Architecture.from_shapes(names)
    config = FAMILIES[family].config(**FAMILIES[family].real)
    assert architecture.name == FAMILIES[family].label
    assert architecture.in_channels == config["in_channels"]
    assert architecture.out_channels == 4
    assert architecture.context_dim == config["cross_attention_dim"]
    assert architecture.adm_channels == config.get("projection_class_embeddings_input_dim")
    assert architecture.emb_channels == 4 * architecture.model_channels
    published = FAMILIES[family].parameters
    assert published in (None, sum(map(math.prod, names.values())))
    assert {n: tuple(p.shape) for n, p in UNet(architecture).named_parameters()} == names


def test_published_numbers_of_parameters_are_checked_for_the_three_base_models() -> None:
    assert [name for name, f in FAMILIES.items() if f.parameters] == ["sd1", "sd2", "sdxl"]


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_those_of_the_published_configs(family: str) -> None:
    unet = real_unet(family)
    names = {id(p): name for name, p in ldm_parameters(unet).items()}
    attentions = [module for name, module in unet.named_modules() if name.endswith("attn1")]
    theirs = {names[id(a.to_q.weight)].split(".transformer_blocks")[0]: a.heads for a in attentions}
    assert theirs
    assert {
        name: layer.heads
        for name, layer in transformers(Architecture.from_shapes(real_shapes(family)))
    } == theirs


def test_transformers_of_sd1_have_8_heads() -> None:
    assert {t.heads for _, t in transformers(Architecture.from_shapes(real_shapes("sd1")))} == {8}


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sdxl-refiner", "ssd-1b"])
def test_transformers_with_linear_projections_have_64_channels_per_head(family: str) -> None:
    found = transformers(Architecture.from_shapes(real_shapes(family)))
    assert found
    assert all(t.linear and t.heads * 64 == t.channels for _, t in found)


def test_depths_of_ssd_1b_are_read_layer_by_layer() -> None:
    architecture = Architecture.from_shapes(real_shapes("ssd-1b"))
    assert [t.depth for _, t in transformers(architecture)] == [2, 2, 4, 4, 4, 4, 10, 2, 1, 1]
    assert architecture.middle_block == (ResBlock(1280, 1280, 1280),)


def test_depths_of_sdxl_and_its_refiner_are_read_layer_by_layer() -> None:
    depths = {
        family: [t.depth for _, t in transformers(Architecture.from_shapes(real_shapes(family)))]
        for family in ("sdxl", "sdxl-refiner")
    }
    assert depths == {"sdxl": [2] * 2 + [10] * 6 + [2] * 3, "sdxl-refiner": [4] * 11}


def test_no_two_families_have_equal_architectures() -> None:
    described = [Architecture.from_shapes(real_shapes(family)) for family in FAMILIES]
    assert len(set(described)) == len(described)


@pytest.mark.parametrize("family", FAMILIES)
def test_specs_round_trip_through_json(family: str) -> None:
    """Keys of compiled units and tasks of compilers contain specs as JSON."""
    for _, layer in Architecture.from_shapes(real_shapes(family)).layers():
        assert spec_from_dict(json.loads(json.dumps(spec_to_dict(layer)))) == layer


def test_the_order_of_parameters_makes_no_difference(small: dict[str, Shape]) -> None:
    assert Architecture.from_shapes(
        dict(sorted(small.items(), reverse=True))
    ) == Architecture.from_shapes(small)


def test_the_heads_of_a_live_module_are_read_off_it(small: dict[str, Shape]) -> None:
    module = UNet(Architecture.from_shapes(small))
    for _, child in module.named_modules():
        if hasattr(child, "heads"):
            child.heads = 4
    architecture = Architecture.from_module(module)
    assert {t.heads for _, t in transformers(architecture)} == {4}
    assert architecture != Architecture.from_shapes(small)


def test_given_heads_take_precedence_over_the_rule(small: dict[str, Shape]) -> None:
    heads = {
        name: t.heads
        for name, t in transformers(Architecture.from_shapes(small, {"middle_block.1": 16}))
    }
    assert heads.pop("middle_block.1") == 16
    assert set(heads.values()) == {8}


def test_refuses_heads_that_do_not_divide_the_channels(small: dict[str, Shape]) -> None:
    with pytest.raises(
        UnsupportedArchitecture, match=r"middle_block\.1 has 128 channels, which 12 attention heads"
    ):
        Architecture.from_shapes(small, {"middle_block.1": 12})


def test_refuses_a_transformer_whose_attention_layers_differ_in_heads(
    small: dict[str, Shape],
) -> None:
    module = UNet(Architecture.from_shapes(small))
    module.get_submodule("input_blocks.4.1.transformer_blocks.0.attn2").heads = 2
    with pytest.raises(
        UnsupportedArchitecture,
        match=r"input_blocks\.4\.1\.transformer_blocks\.0\.attn2 has 2 .* has 8",
    ):
        Architecture.from_module(module)


def test_the_unet_of_a_description_has_no_storage() -> None:
    assert all(p.is_meta for p in UNet(Architecture.from_shapes(real_shapes("sdxl"))).parameters())


def test_a_live_module_is_described_like_its_shapes() -> None:
    unet = UNet(Architecture.from_shapes(real_shapes("sd1")))
    assert Architecture.from_module(unet) == unet.architecture
    assert torch.get_default_dtype() == torch.float32


def test_a_bias_given_by_a_lora_does_not_change_the_architecture(small: dict[str, Shape]) -> None:
    """The WebUI may have merged one before the UNet is looked at."""
    before = Architecture.from_shapes(small)
    small["input_blocks.1.1.transformer_blocks.0.attn1.to_q.bias"] = (32,)
    assert Architecture.from_shapes(small) == before


def test_architectures_are_imported_without_torch(root: Path) -> None:
    code = (
        "import sys, lib_accel.model, lib_accel.model.presets\n"
        "assert lib_accel.model.Architecture\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-S", "-W", "error", "-c", code], cwd=root, check=True)


@pytest.mark.parametrize("number", ["03", "\u0663", "9" * 5000, "-1", "+1", "1_0"])
def test_an_odd_number_of_a_block_has_no_place(small: dict[str, Shape], number: str) -> None:
    small[f"input_blocks.{number}.0.weight"] = (1, 1, 3, 3)
    with pytest.raises(UnsupportedArchitecture, match="has no place in this family"):
        Architecture.from_shapes(small)


def test_many_blocks_are_read_in_time_of_their_number() -> None:
    """Each block once looked through the names of all: 20000 took minutes."""
    names = {f"input_blocks.{n}.0.{part}" for n in range(6000) for part in ("weight", "bias")}
    many = {name: (1, 1, 3, 3) if name.endswith("weight") else (1,) for name in names}
    for n in (0, 2):
        many |= {f"time_embed.{n}.weight": (1, 1), f"time_embed.{n}.bias": (1,)}
    began = time.process_time()
    with pytest.raises(UnsupportedArchitecture, match="middle_block has the numbers"):
        Architecture.from_shapes(many)
    assert time.process_time() - began < 3
