"""How much a merge launches at SDXL's real shapes: ten LoRAs on every layer that LoRAs change.

Tensors of one shape share their memory here, so that none of it is filled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib_accel.model import presets
from lib_accel.model.unet import UNet
from lib_accel.runtime.lora.batches import ROOM
from lib_accel.runtime.lora.diffusers_names import layer_aliases
from lib_accel.runtime.lora.files import Merger
from lib_accel.runtime.lora.merging import BasePlacement, LowRank, copy_all

CARD = torch.device("cuda:0")
MOST_LAUNCHES = 1500
RANK, LORAS = 32, 10


def launched(run: Callable[[], object]) -> list[str]:
    """Return the log's lines: kernels, products, copies, and memory that is set."""
    log = Path(os.environ["PRETEND_LOG"])
    before = log.stat().st_size if log.exists() else 0
    run()
    return log.read_text()[before:].splitlines()


class Shared:
    """Tensors of any number and size in one block of memory."""

    def __init__(self, device: str, size: int):
        pinned = device == "cpu"
        self._memory = torch.empty(size, dtype=torch.half, device=device, pin_memory=pinned)

    def tensor(self, *shape: int) -> Tensor:
        return self._memory[: torch.Size(shape).numel()].view(shape)


@pytest.fixture(scope="module")
def weights() -> dict[str, nn.Parameter]:
    """All attention, feed-forward and convolution layers of SDXL, in float16."""
    architecture, memory = presets.sdxl(), Shared("cuda", 2**25)
    shapes = {name: p.shape for name, p in UNet(architecture).named_parameters()}
    changed = {f"{layer}.weight" for layer, _ in layer_aliases(architecture)}
    return {
        name: nn.Parameter(memory.tensor(*shape), requires_grad=False)
        for name, shape in shapes.items()
        if name in changed and len(shape) > 1
    }


@pytest.fixture(scope="module")
def loras(weights: dict[str, nn.Parameter]) -> list[dict[str, LowRank]]:
    memory = Shared("cpu", 2**21)

    def low_rank(outputs: int, inputs: int, *kernel: int) -> LowRank:
        ones = [1] * len(kernel)
        return LowRank(memory.tensor(outputs, RANK, *ones), memory.tensor(RANK, inputs, *kernel))

    return [{name: low_rank(*p.shape) for name, p in weights.items()}] * LORAS


class SharedBases(BasePlacement):
    """Copies base weights to one block of memory, each over the one before."""

    def keep(self, bases: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        self._memory = Shared("cpu" if self._where == "pinned" else "cuda", 2**25)
        kept = [self._memory.tensor(*base.shape) for base in bases]
        copy_all(kept, bases)
        return kept


@pytest.mark.parametrize("place", ["gpu", "pinned"])
def test_ten_loras_launch_less_than_two_things_a_layer(
    weights: dict[str, nn.Parameter], loras: list[dict[str, LowRank]], place: str
):
    assert len(weights) > 722
    merger = Merger(weights)
    merger._placement = SharedBases(place, print)
    ten = [(lora, 0.5) for lora in loras]
    counts = {"first": len(launched(lambda: merger.set(ten)))}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    counts["strength"] = len(launched(lambda: merger.set([(lora, 0.7) for lora in loras])))
    counts["removed"] = len(launched(lambda: merger.set([])))
    assert max(counts.values()) <= MOST_LAUNCHES, counts
    assert torch.cuda.max_memory_allocated() - before <= ROOM
    print(place, counts, (torch.cuda.max_memory_allocated() - before) >> 20, "MiB")
