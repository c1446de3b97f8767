"""What is no UNet of the family is refused, and the message names what did not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lib_accel.errors import UnsupportedArchitecture
from lib_accel.model.architecture import Architecture
from lib_accel.model.specs import SpatialTransformer

from ..threads import one_thread  # noqa: F401  (a fixture)
from .families import Shape, ldm_parameters, real_shapes, shapes, small_unet

ATTENTION = "input_blocks.1.1.transformer_blocks.0"


Spoil = Callable[[dict[str, Shape]], None]


@pytest.fixture
def small() -> dict[str, Shape]:
    """Shapes of a small SD1 UNet, to spoil."""
    return shapes(ldm_parameters(small_unet("sd1")))


def changed(key: str, shape: Shape) -> Spoil:
    return lambda s: s.update({key: shape})


def without(start: str) -> Spoil:
    def spoil(s: dict[str, Shape]) -> None:
        for key in [k for k in s if k.startswith(start)]:
            del s[key]

    return spoil


def renamed(old: str, new: str) -> Spoil:
    def spoil(s: dict[str, Shape]) -> None:
        for key in [k for k in s if k.startswith(old)]:
            s[new + key[len(old) :]] = s.pop(key)

    return spoil


def legacy_attention(s: dict[str, Shape]) -> None:
    """The attention of guided-diffusion, without a context, which LDM's first models had."""
    without("input_blocks.1.1.")(s)
    s.update({"input_blocks.1.1.norm.weight": (32,), "input_blocks.1.1.norm.bias": (32,)})
    s.update({"input_blocks.1.1.qkv.weight": (96, 32, 1), "input_blocks.1.1.qkv.bias": (96,)})
    s.update(
        {"input_blocks.1.1.proj_out.weight": (32, 32, 1), "input_blocks.1.1.proj_out.bias": (32,)}
    )


def resblock_updown(s: dict[str, Shape]) -> None:
    """Down- and upsampling inside residual blocks, which have the parameters of ordinary ones."""
    down = {"input_blocks.3.0": 32, "input_blocks.6.0": 64, "input_blocks.9.0": 128}
    up = {"output_blocks.2.1": 128, "output_blocks.5.2": 128, "output_blocks.8.2": 64}
    for name, c in {**down, **up}.items():
        without(name + ".")(s)
        for norm in ("in_layers.0", "out_layers.0"):
            s.update({f"{name}.{norm}.weight": (c,), f"{name}.{norm}.bias": (c,)})
        for conv in ("in_layers.2", "out_layers.3"):
            s.update({f"{name}.{conv}.weight": (c, c, 3, 3), f"{name}.{conv}.bias": (c,)})
        s.update({f"{name}.emb_layers.1.weight": (c, 128), f"{name}.emb_layers.1.bias": (c,)})


def scale_shift(s: dict[str, Shape]) -> None:
    s["middle_block.0.emb_layers.1.weight"], s["middle_block.0.emb_layers.1.bias"] = (
        (256, 128),
        (256,),
    )


def no_transformer(s: dict[str, Shape]) -> None:
    for name, spec in Architecture.from_shapes(s).layers():
        if isinstance(spec, SpatialTransformer):
            without(name + ".")(s)
    renamed("middle_block.2.", "middle_block.1.")(s)
    for block in ("output_blocks.5", "output_blocks.8"):
        renamed(f"{block}.2.", f"{block}.1.")(s)


REFUSALS: dict[str, tuple[Spoil, tuple[str, ...]]] = {
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
def test_the_refusal_names_what_did_not_fit(small: dict[str, Shape], case: str) -> None:
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


def test_refuses_an_empty_file() -> None:
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
    """32 channels are less than one head of 64. With a known number of heads it is accepted."""
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
    found = [spec for _, spec in Architecture.from_shapes(names, heads).layers()]
    assert {spec.heads for spec in found if isinstance(spec, SpatialTransformer)} == {4}


def test_refuses_the_x4_upscaler() -> None:
    """It has an embedding, and cross-attention for self-attention; the first misfit is named."""
    names = dict(real_shapes("sd2-inpainting"))
    names["label_emb.weight"] = (1000, 1280)
    names["input_blocks.4.1.transformer_blocks.0.attn1.to_k.weight"] = (640, 1024)
    with pytest.raises(
        UnsupportedArchitecture,
        match=r"input_blocks\.4\.1\.transformer_blocks\.0\.attn1\.to_k\.weight "
        r"has the shape \[640, 1024\]",
    ):
        Architecture.from_shapes(names)
