"""Describing a UNet from names and shapes: every family at its real size, and the refusals, each naming what did not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch

from lib_accel.errors import UnsupportedArchitecture
from lib_accel.model.architecture import (
    Architecture,
    ResBlock,
    SpatialTransformer,
    layer_from_dict,
    layer_to_dict,
)
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
    """Shapes of a small SD1 UNet, to spoil."""
    return shapes(ldm_parameters(small_unet("sd1")))


@pytest.mark.parametrize("family", FAMILIES)
def test_real_sizes(family: str) -> None:
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


def test_real_sizes_are_published_sizes() -> None:
    assert [name for name, f in FAMILIES.items() if f.parameters] == ["sd1", "sd2", "sdxl"]


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_those_of_diffusers(family: str) -> None:
    """The rule gives what the published configs say, layer by layer."""
    unet = real_unet(family)
    names = {id(p): name for name, p in ldm_parameters(unet).items()}
    attentions = [module for name, module in unet.named_modules() if name.endswith("attn1")]
    theirs = {names[id(a.to_q.weight)].split(".transformer_blocks")[0]: a.heads for a in attentions}
    assert theirs
    assert {
        name: layer.heads
        for name, layer in transformers(Architecture.from_shapes(real_shapes(family)))
    } == theirs


def test_heads_rule_of_sd1() -> None:
    assert {t.heads for _, t in transformers(Architecture.from_shapes(real_shapes("sd1")))} == {8}


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sdxl-refiner", "ssd-1b"])
def test_heads_rule_of_linear_projections(family: str) -> None:
    found = transformers(Architecture.from_shapes(real_shapes(family)))
    assert found
    assert all(t.linear and t.heads * 64 == t.channels for _, t in found)


def test_depths_of_ssd_1b() -> None:
    architecture = Architecture.from_shapes(real_shapes("ssd-1b"))
    assert [t.depth for _, t in transformers(architecture)] == [2, 2, 4, 4, 4, 4, 10, 2, 1, 1]
    assert architecture.middle_block == (ResBlock(1280, 1280, 1280),)


def test_depths_of_sdxl_and_its_refiner() -> None:
    assert [t.depth for _, t in transformers(Architecture.from_shapes(real_shapes("sdxl")))] == [
        2,
        2,
        10,
        10,
        10,
        10,
        10,
        10,
        2,
        2,
        2,
    ]
    assert [
        t.depth for _, t in transformers(Architecture.from_shapes(real_shapes("sdxl-refiner")))
    ] == [4] * 11


def test_families_differ() -> None:
    described = [Architecture.from_shapes(real_shapes(family)) for family in FAMILIES]
    assert len(set(described)) == len(described)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_round_trip_through_json(family: str) -> None:
    """As keys of compiled units, and tasks of their compilers, carry them."""
    for _, layer in Architecture.from_shapes(real_shapes(family)).layers():
        assert layer_from_dict(json.loads(json.dumps(layer_to_dict(layer)))) == layer


def test_the_order_of_keys_is_of_no_account(small: dict[str, Shape]) -> None:
    assert Architecture.from_shapes(
        dict(sorted(small.items(), reverse=True))
    ) == Architecture.from_shapes(small)


def test_a_live_module_says_its_heads(small: dict[str, Shape]) -> None:
    module = UNet(Architecture.from_shapes(small))
    for _, child in module.named_modules():
        if hasattr(child, "heads"):
            child.heads = 4
    architecture = Architecture.from_module(module)
    assert {t.heads for _, t in transformers(architecture)} == {4}
    assert architecture != Architecture.from_shapes(small)


def test_given_heads_take_precedence_where_given(small: dict[str, Shape]) -> None:
    heads = {
        name: t.heads
        for name, t in transformers(Architecture.from_shapes(small, {"middle_block.1": 16}))
    }
    assert heads.pop("middle_block.1") == 16
    assert set(heads.values()) == {8}


def test_heads_that_do_not_divide(small: dict[str, Shape]) -> None:
    with pytest.raises(
        UnsupportedArchitecture, match=r"middle_block\.1 has 128 channels, which 12 attention heads"
    ):
        Architecture.from_shapes(small, {"middle_block.1": 12})


def test_a_transformer_of_unequal_heads(small: dict[str, Shape]) -> None:
    module = UNet(Architecture.from_shapes(small))
    module.get_submodule("input_blocks.4.1.transformer_blocks.0.attn2").heads = 2
    with pytest.raises(
        UnsupportedArchitecture,
        match=r"input_blocks\.4\.1\.transformer_blocks\.0\.attn2 has 2 .* has 8",
    ):
        Architecture.from_module(module)


def test_description_takes_no_memory() -> None:
    assert all(p.is_meta for p in UNet(Architecture.from_shapes(real_shapes("sdxl"))).parameters())


ATTENTION = "input_blocks.1.1.transformer_blocks.0"


def changed(key: str, shape: Shape) -> Callable[[dict[str, Shape]], None]:
    return lambda s: s.update({key: shape})


def without(start: str) -> Callable[[dict[str, Shape]], None]:
    def spoil(s: dict[str, Shape]) -> None:
        for key in [k for k in s if k.startswith(start)]:
            del s[key]

    return spoil


def renamed(old: str, new: str) -> Callable[[dict[str, Shape]], None]:
    def spoil(s: dict[str, Shape]) -> None:
        for key in [k for k in s if k.startswith(old)]:
            s[new + key[len(old) :]] = s.pop(key)

    return spoil


def legacy_attention(s: dict[str, Shape]) -> None:
    """The guided-diffusion attention without a context, where LDM's first models had no transformer."""
    without("input_blocks.1.1.")(s)
    s.update({"input_blocks.1.1.norm.weight": (32,), "input_blocks.1.1.norm.bias": (32,)})
    s.update({"input_blocks.1.1.qkv.weight": (96, 32, 1), "input_blocks.1.1.qkv.bias": (96,)})
    s.update(
        {"input_blocks.1.1.proj_out.weight": (32, 32, 1), "input_blocks.1.1.proj_out.bias": (32,)}
    )


def resblock_updown(s: dict[str, Shape]) -> None:
    """Down- and upsampling inside residual blocks: the layers `op` and `conv` give way to ones that look like any other."""
    down = {"input_blocks.3.0": 32, "input_blocks.6.0": 64, "input_blocks.9.0": 128}
    up = {"output_blocks.2.1": 128, "output_blocks.5.2": 128, "output_blocks.8.2": 64}
    for name, c in {**down, **up}.items():
        without(name + ".")(s)
        norm, conv, bias = (c,), (c, c, 3, 3), (c,)
        s.update(
            {
                f"{name}.in_layers.0.weight": norm,
                f"{name}.in_layers.0.bias": norm,
                f"{name}.in_layers.2.weight": conv,
            }
        )
        s.update(
            {
                f"{name}.in_layers.2.bias": bias,
                f"{name}.emb_layers.1.weight": (c, 128),
                f"{name}.emb_layers.1.bias": bias,
            }
        )
        s.update(
            {
                f"{name}.out_layers.0.weight": norm,
                f"{name}.out_layers.0.bias": norm,
                f"{name}.out_layers.3.weight": conv,
            }
        )
        s.update({f"{name}.out_layers.3.bias": bias})


def scale_shift(s: dict[str, Shape]) -> None:
    s["middle_block.0.emb_layers.1.weight"], s["middle_block.0.emb_layers.1.bias"] = (
        (256, 128),
        (256,),
    )


def no_transformer(s: dict[str, Shape]) -> None:
    for name, _ in transformers(Architecture.from_shapes(s)):
        without(name + ".")(s)
    renamed("middle_block.2.", "middle_block.1.")(s)
    for block in ("output_blocks.5", "output_blocks.8"):
        renamed(f"{block}.2.", f"{block}.1.")(s)


REFUSALS: dict[str, tuple[Callable[[dict[str, Shape]], None], tuple[str, ...]]] = {
    "a missing key": (
        without("middle_block.1.proj_out.bias"),
        ("middle_block.1.proj_out.bias", "missing"),
    ),
    "an extra key": (changed("out.3.weight", (7, 9)), ("out.3.weight", "[7, 9]", "no place")),
    "a bias of another width": (
        changed(f"{ATTENTION}.attn1.to_q.bias", (31,)),
        (f"{ATTENTION}.attn1.to_q.bias", "[31]", "[32]"),
    ),
    "a wrong shape": (
        changed("input_blocks.2.0.in_layers.2.weight", (32, 31, 3, 3)),
        ("input_blocks.2.0.in_layers.2.weight", "[32, 31, 3, 3]", "[32, 32, 3, 3]"),
    ),
    "a wrong number of dimensions": (
        changed("input_blocks.0.0.weight", (32, 4, 3)),
        ("input_blocks.0.0.weight", "[32, 4, 3]", "4 dimensions"),
    ),
    "a 5x5 kernel": (
        changed("input_blocks.0.0.weight", (32, 4, 5, 5)),
        ("input_blocks.0.0.weight", "[32, 4, 5, 5]", "[32, 4, 3, 3]"),
    ),
    "another context in one layer": (
        changed("middle_block.1.transformer_blocks.0.attn2.to_k.weight", (128, 40)),
        ("middle_block.1.transformer_blocks.0.attn2.to_k.weight", "context of 40", "take 48"),
    ),
    "no transformer": (no_transformer, ("no cross-attention", "expected at least one")),
    "keys and values of different contexts": (
        changed(f"{ATTENTION}.attn2.to_v.weight", (32, 40)),
        (f"{ATTENTION}.attn2.to_v.weight", "[32, 40]"),
    ),
    "legacy AttentionBlock": (
        legacy_attention,
        ("input_blocks.1.1.", "no known layer", "spatial transformer"),
    ),
    "an embedding label_emb": (
        changed("label_emb.weight", (1000, 128)),
        ("label_emb.weight", "[1000, 128]", "no place"),
    ),
    "a one-dimensional label_emb": (changed("label_emb.bias", (128,)), ("label_emb.bias", "[128]")),
    "disable_self_attn": (
        changed(f"{ATTENTION}.attn1.to_k.weight", (32, 48)),
        (f"{ATTENTION}.attn1.to_k.weight", "[32, 48]", "[32, 32]"),
    ),
    "resblock_updown": (
        resblock_updown,
        ("0 downsampling and 0 upsampling", "expected equal numbers"),
    ),
    "use_scale_shift_norm": (
        scale_shift,
        ("middle_block.0.emb_layers.1.weight", "[256, 128]", "[128, 128]"),
    ),
    "average pooling": (
        without("input_blocks.3."),
        ("input_blocks", "[0, 1, 2, 4,", "without gaps"),
    ),
    "a gap in the input blocks": (
        renamed("input_blocks.11.", "input_blocks.12."),
        ("input_blocks", "10, 12]", "without gaps"),
    ),
    "a gap in the layers": (
        renamed("output_blocks.5.2.", "output_blocks.5.3."),
        ("output_blocks.5", "[0, 1, 3]", "without gaps"),
    ),
    "a gap in the transformer blocks": (
        renamed(ATTENTION, "input_blocks.1.1.transformer_blocks.1"),
        ("input_blocks.1.1.transformer_blocks", "[1]"),
    ),
    "no middle block": (without("middle_block."), ("middle_block", "without gaps")),
    "a missing output block": (
        without("output_blocks.11."),
        ("12 input blocks but 11 output blocks",),
    ),
    "a missing input block": (
        without("input_blocks.11."),
        ("output_blocks.4.0.in_layers.0.weight", "[256]", "[192]"),
    ),
    "another width at the end": (changed("out.0.weight", (64,)), ("out.0.weight", "[64]", "[32]")),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal(small: dict[str, Shape], case: str) -> None:
    spoil, named = REFUSALS[case]
    spoil(small)
    with pytest.raises(UnsupportedArchitecture) as e:
        Architecture.from_shapes(small)
    for part in named:
        assert part in str(e.value)


def test_refuses_a_diffusion_transformer() -> None:
    sd3 = {
        "x_embedder.proj.weight": (1536, 16, 2, 2),
        "joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536),
        "pos_embed": (1, 36864, 1536),
    }
    with pytest.raises(
        UnsupportedArchitecture,
        match=r"time_embed\.0\.weight is missing; this is a diffusion transformer \(SD3\), not",
    ):
        Architecture.from_shapes(sd3)


def test_refuses_nothing_at_all() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"time_embed\.0\.weight is missing"):
        Architecture.from_shapes({})


def test_refuses_channels_that_32_groups_do_not_divide() -> None:
    names = {
        n: tuple(48 if d == 32 else d for d in s)
        for n, s in shapes(ldm_parameters(small_unet("sd1"))).items()
    }
    with pytest.raises(
        UnsupportedArchitecture,
        match=r"input_blocks\.1\.0\.in_layers\.0 normalises 48 channels, which 32 groups",
    ):
        Architecture.from_shapes(names)


def test_refuses_linear_projections_narrower_than_a_head() -> None:
    """32 channels hold no head of 64; a live module that says how many heads it has is taken."""
    names = {
        n: s[:2] if ".proj_" in n else s
        for n, s in shapes(ldm_parameters(small_unet("sd1"))).items()
    }
    with pytest.raises(
        UnsupportedArchitecture,
        match=r"input_blocks\.1\.1 has 32 channels, which 0 attention heads do not divide",
    ):
        Architecture.from_shapes(names)
    heads = {n.split(".transformer_blocks")[0]: 4 for n in names if ".transformer_blocks" in n}
    assert {t.heads for _, t in transformers(Architecture.from_shapes(names, heads))} == {4}


def test_refuses_the_x4_upscaler() -> None:
    """The real one has both an embedding and cross-attention in place of self-attention; the first that does not fit is named."""
    names = dict(real_shapes("sd2-inpainting"))
    names["label_emb.weight"] = (1000, 1280)
    names["input_blocks.4.1.transformer_blocks.0.attn1.to_k.weight"] = (640, 1024)
    with pytest.raises(
        UnsupportedArchitecture,
        match=r"input_blocks\.4\.1\.transformer_blocks\.0\.attn1\.to_k\.weight has the shape \[640, 1024\]",
    ):
        Architecture.from_shapes(names)


def test_describing_moves_no_weights() -> None:
    unet = UNet(Architecture.from_shapes(real_shapes("sd1")))
    assert Architecture.from_module(unet) == unet.architecture
    assert torch.get_default_dtype() == torch.float32


def test_a_bias_that_a_lora_has_given_is_no_other_architecture(small: dict[str, Shape]) -> None:
    """The WebUI may have merged one before the UNet is looked at."""
    before = Architecture.from_shapes(small)
    small[f"{ATTENTION}.attn1.to_q.bias"] = (32,)
    assert Architecture.from_shapes(small) == before
