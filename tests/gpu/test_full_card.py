"""A card that is nearly full: what is made with acceleration off is made with it on.

Beyond what off takes, memory is taken only while 1 GiB stays free. On Windows the driver moves
memory out instead of failing, so nobody is told when it was too much.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lib_accel.compile.machine import RESERVE
from lib_accel.runtime.graphs.cache import out_of_memory_errors
from lib_accel.store import ArtifactStore
from lib_accel.store.signing import generate_key, write_key
from lib_accel.tools.laboratory.environment import HOME
from lib_accel.tools.laboratory.stand_ins import without_cudnn

from ..standin.host import in_place
from . import full_card
from .full_card import CARD, GIB, Card, Image, Made

CAPS = (4, 6, 8, 12)
ONE, TWO = ("one",), ("one", "two")
IMAGES = (
    Image(512, 512),
    Image(512, 512, 1, ONE),
    Image(512, 512, 4, ONE),
    Image(512, 768, 2),
    Image(1024, 1024, 1, TWO),
    Image(1024, 1024, 2),
    Image(1024, 1024, 4, ("two",)),
    Image(512, 512),
)
WORKSPACE = 20 * 2**20
"""What cuBLAS keeps for the stream on which CUDA graphs are recorded: 8.1 MiB on this card, for
which torch takes a piece of 20 MiB."""

Prepare = Callable[[Card], object]
OFF = "--accel-disable"


@pytest.fixture(scope="module", autouse=True)
def convolutions() -> object:
    """Instead of what all tests here share: an extension's `conv2d` would show in the layers."""
    return without_cudnn()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile SD1 at its real widths; it is kept as long as its source code stays the same."""
    folder, key = HOME / "store", HOME / "store.key"
    if not key.exists():
        write_key(key, generate_key())
    full_card.build(ArtifactStore(folder, key_file=key), tmp_path_factory.mktemp("work"))
    return folder


Play = Callable[..., tuple[Made, ...]]


@pytest.fixture(scope="module")
def play(store: Path) -> Play:
    """A function that makes IMAGES on a card of so many GiB, in a WebUI that has just started.

    `pages`: its driver moves memory out instead of running out of it.
    """

    @functools.cache
    def play(
        cap: int, *flags: str, prepare: Prepare | None = None, pages: bool = False
    ) -> tuple[Made, ...]:
        with pytest.MonkeyPatch.context() as patch, in_place():
            patch.setenv("PRETEND_BYTES", str(cap * GIB))
            patch.setenv("PRETEND_PAGES", str(int(pages)))
            card = Card(store, "--accel-store-key", f"{store}.key", *flags)
            if flags != (OFF,):
                status = card.status()
                assert (status["state"], status["backend"]) == ("ready", "aoti"), status["reason"]
            if prepare is not None:
                prepare(card)
            made = tuple(map(card.make, IMAGES))
            card.close()
        del card
        gc.collect()
        torch.cuda.empty_cache()
        return made

    return play


def keep_bases_on_the_card(card: Card) -> None:
    card.opts.set("accel_lora_base", "gpu")


def witness_and_preview(card: Card) -> None:
    card.witness()
    card.module("lib_accel.host.unet.witness").difference = lambda *_: 0.0  # nothing is computed
    card.opts.set("accel_witness_steps", 4)
    card.show_previews()


def preview(card: Card) -> None:
    card.show_previews()


CASES = pytest.mark.parametrize(
    ("prepare", "off"),
    [(None, None), (keep_bases_on_the_card, None), (witness_and_preview, preview)],
    ids=["as installed", "bases on the card", "witnessed, with previews"],
)


@CASES
@pytest.mark.parametrize("cap", CAPS)
def test_every_image_that_is_made_without_is_made_with_acceleration(
    play: Play, cap: int, prepare: Prepare | None, off: Prepare | None
):
    without, made = play(cap, OFF, prepare=off), play(cap, prepare=prepare)
    assert not [i for i, b, m in zip(IMAGES, without, made, strict=True) if b.ok and not m.ok]


@CASES
@pytest.mark.parametrize("cap", CAPS)
def test_more_memory_is_taken_only_while_some_stays_free(
    play: Play, cap: int, prepare: Prepare | None, off: Prepare | None
):
    """The driver of this card moves memory out, as that for Windows does."""
    without = play(cap, OFF, prepare=off, pages=True)
    made = play(cap, prepare=prepare, pages=True)
    most = cap * GIB - RESERVE
    worse = {
        image: (b, m)
        for image, b, m in zip(IMAGES, without, made, strict=True)
        if m.driver > max(b.driver + WORKSPACE, most) or m.torch > max(b.torch + WORKSPACE, most)
    }
    assert not worse
    assert all(m.ok for m in made)


def test_a_merge_in_float32_looks_for_room_before(store: Path, monkeypatch: pytest.MonkeyPatch):
    """A LoHa needs several copies of a weight; what is not there is not waited for."""
    layer = "output_blocks.0.0.in_layers.2"
    monkeypatch.setenv("PRETEND_BYTES", str(4 * GIB))
    with in_place():
        card = Card(store, "--accel-store-key", f"{store}.key")
        outputs, inputs, *kernel = card.unet.get_submodule(layer).weight.shape
        columns = inputs * kernel[0] * kernel[1]
        with torch.device(CARD):
            a, b = torch.empty(outputs, 4), torch.empty(4, columns)
            parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a, "hada_w2_b": b}
            card.want(card.network("style", {layer: parts}))
        torch.cuda.empty_cache()  # what is in small pieces cannot be filled at once
        free = torch.cuda.mem_get_info(CARD)[0]
        filled = torch.empty(free - 300 * 2**20, dtype=torch.uint8, device=CARD)
        errors = out_of_memory_errors(CARD)
        assert card.service.current().loras.bring_up_to_date()
        assert out_of_memory_errors(CARD) == errors
        assert card.unet.get_submodule(layer).network_current_names[0][0] == "style"
        del filled
        card.close()
