"""That kernels touch nothing but their tensors, wherever those lie, and refuse what does not fit.

Every launch of these tests is watched; see emulator.py.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.compile.backends.kernels import embedding as embedding_module
from lib_accel.compile.backends.kernels import geometry, nvrtc, operations
from lib_accel.compile.backends.kernels.launching import KERNELS
from lib_accel.errors import BadWeights

from .cases import CASES, Case, add, convert, embedding, geglu, group_norm, layer_norm
from .emulator import EmulatedKernels, Misbehaved, kernels_of
from .test_numbers import by_name

ALIGNED = [
    group_norm((1, 64, 5, 3), skip=32),
    layer_norm(1, 2, 320),
    geglu(1, 5, 32),
    add(2, 16, 3, 2),
    add(1, 16, 3, 2, to=(6, 4)),
    embedding(1, 16, 16, 8, (8, 8)),
]


def moved(t: Tensor, elements: int) -> Tensor:
    """Return the same tensor, that many elements after an address that is a multiple of 16."""
    space = torch.empty(t.numel() + elements + 16, dtype=t.dtype)
    start = (-space.data_ptr() % 16) // t.element_size() + elements
    out = torch.as_strided(space, t.shape, t.stride(), start)
    return out.copy_(t)


@by_name(ALIGNED)
def test_every_offset_of_every_pointer_gives_the_same(make, case: Case):
    kernels = make(torch.float16)
    inputs = case.inputs(lambda *shape: torch.randn(shape).half())
    expected = case.call(kernels, inputs)
    for elements in range(1, 8):
        shifted = {
            name: [moved(t, elements) for t in each]
            if isinstance(each, list)
            else moved(each, elements)
            if isinstance(each, Tensor) and each.is_floating_point()
            else each
            for name, each in inputs.items()
        }
        together = case.call(kernels, shifted)
        names = [name for name in inputs if isinstance(inputs[name], Tensor | list)]
        apart = case.call(kernels, {**inputs, **{n: shifted[n] for n in names[elements - 1 :: 7]}})
        for got in together, apart:
            for one, other in zip(got, expected, strict=True):
                assert torch.allclose(one.float(), other.float(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.operation != "embedding"], ids=lambda c: c.name
)
def test_views_are_computed_as_their_copies_are(make, case: Case):
    kernels = make(torch.float32)
    inputs = case.inputs(lambda *shape: torch.randn(shape))
    views = {
        # every second number of something twice as large
        name: t.repeat_interleave(2, -1)[..., ::2] if isinstance(t, Tensor) else t
        for name, t in inputs.items()
    }
    for one, other in zip(case.call(kernels, views), case.call(kernels, inputs), strict=True):
        assert torch.equal(one, other)


@by_name(CASES)
def test_an_empty_batch_launches_nothing(make, case: Case):
    kernels = make(torch.float16)
    inputs = case.inputs(lambda *shape: torch.randn(shape).half())
    batch = (inputs["x"] if "x" in inputs else inputs["timesteps"]).shape[0]
    empty = {
        name: t[:0] if isinstance(t, Tensor) and t.ndim > 1 and t.shape[0] == batch else t
        for name, t in inputs.items()
    }
    if case.operation == "embedding":
        empty["timesteps"] = inputs["timesteps"][:0]
    assert all(not t.numel() for t in case.call(kernels, empty))
    assert kernels.launcher.launched == []


def test_what_is_not_written_or_written_twice_is_found(make, monkeypatch: pytest.MonkeyPatch):
    """Each check of the emulation can fail."""
    kernels, x = make(torch.float16), torch.ones(2, 300, 64).half()
    tensors = kernels.pointers

    def planted(**change: Any) -> None:
        with monkeypatch.context() as patched:
            for name, value in change.items():
                patched.setattr(geometry, name, value)
            kernels.add(x)

    real = geometry.rows
    fewer = lambda *a: real(*a)._replace(grid=(real(*a).grid[0] - 1, 1))  # noqa: E731
    with pytest.raises(Misbehaved, match="were not written"):
        planted(rows=fewer)
    narrower = lambda *a: real(*a)._replace(lanes=real(*a).lanes // 2)  # noqa: E731
    with pytest.raises(Misbehaved, match="more than once"):
        planted(rows=narrower)
    with monkeypatch.context() as patched:
        patched.setattr(
            kernels, "pointers", lambda *t: [each and each + 128 for each in tensors(*t)]
        )
        with pytest.raises(Misbehaved, match="outside of all"):
            kernels.add(x)
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "pointers", lambda *t: [each and each + 2 for each in tensors(*t)])
        patched.setattr(kernels, "width", lambda *_: 8)
        with pytest.raises(Misbehaved, match="no multiple"):
            kernels.add(x)


REFUSED: dict[str, Any] = {
    "dtype": (lambda k, x: k.add(x.float()), "x.* is torch.float32 on cpu; expected torch.float16"),
    "device": (lambda k, x: k.geglu(x.to("meta")), "on meta; expected torch.float16 on cpu"),
    "residual": (lambda k, x: k.add(x, residual=x[:1]), "expected"),
    "broadcast residual": (
        lambda k, x: k.layer_norm(x, x[0, 0], x[0, 0], 1e-5, residual=x[:, :1]),
        r"residual: got the shape \[2, 1, 8\], expected \[2, 4, 8\]",
    ),
    "offset": (lambda k, x: k.add(x, x[0, 0, :4]), r"offset: got the shape \[4\], expected \[8\]"),
    "offset of another batch": (
        lambda k, x: k.add(x, torch.ones(3, 8).half()),
        r"offset: got the shape \[3, 8\], expected \[2, 8\]",
    ),
    "groups": (
        lambda k, x: k.group_norm(x[..., None], x[0, :, 0], x[0, :, 0], 3, 1e-5),
        "4 channels are no multiple of 3 groups",
    ),
    "weight": (
        lambda k, x: k.group_norm(x[..., None], x[0, 0], x[0, :, 0], 2, 1e-5),
        r"weight: got the shape \[8\], expected \[4\]",
    ),
    "skip": (
        lambda k, x: k.group_norm(x[..., None], x[0, 0], x[0, 0], 2, 1e-5, skip=x[:1, ..., None]),
        "skip: got the shape",
    ),
    "no image": (
        lambda k, x: k.group_norm(x, x[0, 0], x[0, 0], 2, 1e-5),
        r"x: got the shape \[2, 4, 8\], expected \[B, C, H, W\]",
    ),
    "odd": (lambda k, x: k.geglu(x[..., :7]), "7 channels; expected as many values as gates"),
    "nothing to resize": (
        lambda k, x: k.upsample(x[..., :0, None], 2, 2),
        "an image has 0 and 4 pixels; expected at least one",
    ),
    "too many pixels": (
        lambda k, x: k._sum("upsample", *HUGE),
        "1 and 4294967296 pixels; expected",
    ),
    "layers": (lambda k, x: k.embedding(torch.ones(2), None, [x[0]] * 3), "got 3 weights"),
    "timesteps": (lambda k, x: k.embedding(torch.ones(2, 1), None, []), "timesteps: got the shape"),
    "inputs": (
        lambda k, x: k.embedding(torch.ones(2), None, [x[0], x[0, 0], x[0], x[0, :, 0]]),
        r"bias: got the shape \[8\], expected \[4\]",
    ),
}
HUGE = torch.ones(1, 8, 1, 1).half(), None, None, (2**16, 2**16)


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_with_what_was_expected(make, what: str, monkeypatch):
    kernels = make(torch.float16)
    monkeypatch.setattr(kernels, "new_image", lambda *shape: torch.ones(1).half())
    call, words = REFUSED[what]
    with pytest.raises(BadWeights, match=words):
        call(kernels, torch.randn(2, 4, 8).half())
    assert kernels.launcher.launched == []


def test_a_batch_that_no_launch_can_have_is_refused(make):
    x = torch.ones(65536, 8, 1, 1).half()
    with pytest.raises(BadWeights, match="group_norm_statistics would need 1 x 1 x 65536 blocks"):
        make(torch.float16).group_norm(x, x[0, :, 0, 0], x[0, :, 0, 0], 2, 1e-5)


def test_the_names_and_structs_are_those_of_the_sources():
    texts = nvrtc.sources()
    assert set(KERNELS) == set(kernels_of("\n".join(texts.values())))
    assert next(iter(texts)) == "prelude.cu"
    structs = {
        "GroupNorm": operations._GROUP_NORM,
        "LayerNorm": operations._LAYER_NORM,
        "Geglu": operations._GEGLU,
        "Add": operations._ADD,
        "Layer": embedding_module._LAYER,
    }
    for name, packed in structs.items():
        text = re.search(rf"^struct {name} {{$(.*?)^}};", "\n".join(texts.values()), re.M | re.S)
        assert text
        assert (
            struct.Struct("@" + "".join(map(_letter, _fields(text[1]))) + "0P").size == packed.size
        )
        expected = packed.format.removeprefix("@").removesuffix("0P")
        spelled = re.sub(r"(\d+)(\w)", lambda m: int(m[1]) * m[2], expected)
        assert "".join(map(_letter, _fields(text[1]))) == spelled, name
    assert f"MOST = {embedding_module.MOST};" in texts["embedding.cu"]
    assert (
        embedding_module._LAYERS.size + embedding_module.MOST * embedding_module._LAYER.size <= 4096
    )


def _fields(text: str) -> list[str]:
    """Return the type of each field of a C struct."""
    lines = re.sub(r"//.*", "", text).split(";")
    return [
        line.split()[-2 - line.count(",")] + line[line.rfind("*") :][:1]
        if "*" in line
        else line.split()[0]
        for line in lines
        if line.strip()
        for _ in line.split(",")
    ]


def _letter(kind: str) -> str:
    return "P" if "*" in kind else {"int64": "q", "int": "i", "float": "f"}[kind]


@pytest.mark.parametrize("channels", [*range(1, 70), 320, 640, 960, 1280, 1920, 2560, 8192, 6007])
def test_every_number_of_channels_can_be_cut(channels: int):
    for groups in (g for g in (1, 2, 32, channels) if channels % g == 0):
        for wide, size in (8, 2), (4, 4), (1, 2), (1, 4):
            cut = geometry.tiles(channels, groups, wide, size)
            if cut is None:
                assert wide > 1
                continue
            assert cut.width * cut.parts == channels // groups
            assert channels % (cut.width * cut.tile) == 0
            lanes, rest = divmod(cut.width * cut.tile, wide)
            assert rest == 0
            assert 1 <= lanes <= geometry.THREADS
            assert cut.tile <= geometry.THREADS


def test_the_widths_of_real_models_are_read_in_whole_lines():
    for channels in (128, 256, 320, 512, 640, 960, 1280, 1920, 2560):
        cut = geometry.tiles(channels, 32, 8, 2)
        assert cut
        assert cut.parts == 1
        assert 128 <= 2 * cut.width * cut.tile <= 512


def test_large_images_are_cut_for_all_multiprocessors():
    for pixels, columns, lanes in (4096, 8, 20), (16384, 10, 15), (2**20, 2, 8), (2**22, 4, 8):
        cut = geometry.slabs(pixels, columns, lanes, 132, 2)
        assert 0.9 * 2 * 132 <= cut.number * columns <= 1.1 * 2 * 132
        assert (cut.number - 1) * cut.rows < pixels <= cut.number * cut.rows


def test_float64_has_no_kernels(make):
    with pytest.raises(BadWeights):
        make(torch.float16).add(convert(torch.ones(1, 2, 3), torch.float64))


def test_the_emulation_makes_every_kernel_run(make):
    """All cases together launch all kernels, so none is without a test."""
    seen: set[str] = set()
    for case in CASES:
        kernels: EmulatedKernels = make(torch.float16)
        inputs = case.inputs(lambda *shape: torch.zeros(shape).half())
        case.call(kernels, inputs)
        seen |= set(kernels.launcher.launched)
    assert seen == set(KERNELS)
