"""A stand-in of the WebUI whose SD1 of real size makes images on a pretend card."""

from __future__ import annotations

import contextlib
import ctypes
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_accel.compile.backends.aoti.worker_environment import made_with
from lib_accel.compile.backends.aoti.worker_process import Results, Worker
from lib_accel.compile.machine import probe
from lib_accel.compile.target import Target
from lib_accel.compile.units import units_of
from lib_accel.model.presets import sd1
from lib_accel.store import ArtifactStore

from ..standin.host import Host

CARD = torch.device("cuda:0")
GIB = 2**30
SD1 = sd1()
PATIENCE_S = 600
PASSED = {"compiled": [1e-3] * 4, "eager": [1e-3] * 4}
"""Stands for the verdict of the accuracy check, which kernels that compute nothing cannot pass."""


@dataclass(frozen=True)
class Image:
    """One picture that is asked for: pixels, how many at once, and the LoRAs of its prompt."""

    width: int
    height: int
    batch: int = 1
    loras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """Whether it was made, and the most memory that the card and torch had given out meanwhile."""

    ok: bool
    driver: int
    torch: int


class Decoder(nn.Module):
    """The allocations of SD1's VAE: `z: [1, 4, H/8, W/8]` -> `[1, 3, H, W]`.

    Rombach et al. 2022, `ldm/modules/diffusionmodules/model.py: Decoder`, without its attention.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (512, 512, 256, 128)
        self.conv_in = nn.Conv2d(4, 512, 3, padding=1)
        self.levels = nn.ModuleList()
        before = 512
        for width in widths:
            self.levels.append(nn.ModuleList(_Residual(b, width) for b in (before, width, width)))
            before = width
        self.ups = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in widths[:-1])
        self.conv_out = nn.Conv2d(128, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for i, level in enumerate(self.levels):
            if i:
                h = self.ups[i - 1](F.interpolate(h, scale_factor=2.0, mode="nearest"))
            for block in level:  # type: ignore[attr-defined]
                h = block(h)
        return self.conv_out(F.silu(h))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inputs), nn.GroupNorm(32, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        h = self.conv1(h * torch.sigmoid(h))
        h = self.norm2(h)
        return self.shortcut(x) + self.conv2(h * torch.sigmoid(h))


class VAE(nn.Module):
    """What the WebUI calls: `decode`, which calls `decoder` as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class Card(Host):
    """A running stand-in on the card: a model in half precision, a VAE, and two LoRAs."""

    def __init__(self, store: Path, *flags: str):
        super().__init__("--accel-store", str(store), "--accel-no-compile", *flags)
        devices = self.module("modules.devices")
        devices.device, devices.autocast = CARD, lambda: torch.autocast("cuda", torch.float16)
        with _on_the_card():
            unet = self.module("ldm.unet").UNetModel(SD1).requires_grad_(False).eval()
            vae = VAE().requires_grad_(False).eval()
        self.module("modules.sd_models").load_model(unet)
        self.model.first_stage_model = vae
        with _on_the_card():
            self.loras = {name: self._lora(name) for name in ("one", "two")}

    def _lora(self, name: str) -> Any:
        """Return a LoRA of rank 16 for every linear layer of the transformers."""
        layers = {
            n: {
                "lora_up.weight": torch.empty(m.out_features, 16),
                "lora_down.weight": torch.empty(16, m.in_features),
            }
            for n, m in self.unet.named_modules()
            if isinstance(m, nn.Linear) and "transformer_blocks" in n
        }
        return self.network(name, layers)

    def show_previews(self) -> None:
        """Let the VAE decode the picture in the middle of each image, as "Full" previews do."""

        def preview(params: Any) -> None:
            if params.sampling_step == params.total_sampling_steps // 2:
                self.model.first_stage_model.decode(params.x[:1])

        self.module("modules.script_callbacks").on_cfg_denoised(preview)

    def make(self, image: Image, steps: int = 8) -> Made:
        """Make an image, or run out of memory."""
        count = 2 * image.batch
        x = torch.zeros(count, 4, image.height // 8, image.width // 8, device=CARD).half()
        timesteps = torch.zeros(count, device=CARD)
        context = torch.zeros(count, 77, SD1.context_dim, device=CARD).half()
        processing = self.module("modules.processing")
        wanted = [self.loras[name] for name in image.loras]
        p = processing.StableDiffusionProcessing(x, timesteps, context, wanted, steps=steps)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(CARD)
        driver_peak()
        try:
            with torch.autocast("cuda", torch.float16):
                processing.process_images(p)
            ok = True
        except torch.cuda.OutOfMemoryError:
            ok = False
        made = Made(ok, driver_peak(), torch.cuda.max_memory_allocated(CARD))
        torch.cuda.empty_cache()
        return made


def driver_peak() -> int:
    """Return the most bytes of the card that were taken at once since the last question."""
    ask = ctypes.CDLL(None).pretend_peak
    ask.restype = ctypes.c_size_t
    return ask()


@contextlib.contextmanager
def _on_the_card() -> Iterator[None]:
    """Make tensors on the card, in half precision: nothing else of the size of a model is made."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device(CARD):
            yield
    finally:
        torch.set_default_dtype(before)


# -- what is played on it


def build(store: ArtifactStore, folder: Path) -> None:
    """Compile what `store` lacks of SD1's units, in half precision: some minutes, once."""
    target = Target(units_of(SD1), torch.float16, CARD, probe(CARD))
    results: Results = queue.SimpleQueue()
    worker = Worker(folder, results, 2, target.machine)
    try:
        for unit in target.units:
            if store.contains(target.keys[unit]):
                continue
            worker.give(unit, target)
            answer: dict[str, Any] = {}
            while answer.get("stage") != "check":
                answer = results.get(timeout=PATIENCE_S)[1] or {"error": worker.log_tail()}
                assert "error" not in answer, answer
            files, made = worker.files(), made_with(target.machine)
            store.put(target.recipe(unit), files, PASSED, made_with=made)
            while not {"error", "ok"} & answer.keys():  # how the check ends means nothing here
                answer = results.get(timeout=PATIENCE_S)[1] or {"error": "the worker ended"}
            worker.take_back()
    finally:
        worker.kill()
