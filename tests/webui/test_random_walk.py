"""Random changes one after another on one server, and after each the same picture off and on.

ACCEL_E2E_WALK is the number of actions (default 300), ACCEL_E2E_SEED chooses the walk (default 1);
the same two numbers give the same walk. With ACCEL_CONTROLNET, the folder of sd-webui-controlnet,
control units come and go as well: those that fit a UNet of any width.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file

from lib_accel.tools.webui.client import Refused

from ..control_files import t2i_adapter
from ..network_files import shapes_of
from .conftest import Launch, rows
from .host import DEFAULTS, Server
from .pictures import MIN_DB, Pictures
from .walk_actions import ACTIONS, CONTROLNET, HIRES, State, both

LENGTH = int(os.environ.get("ACCEL_E2E_WALK", "300"))
SEED = int(os.environ.get("ACCEL_E2E_SEED", "1"))


@dataclass
class Walk:
    """What came of it so far."""

    server: Server
    random: random.Random
    state: State = field(default_factory=State)
    done: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)  # where the WebUI did not repeat itself
    refused: list[str] = field(default_factory=list)  # by the WebUI, off as on
    served: int = 0
    memory: list[float] = field(default_factory=list)  # MB after each picture

    def step(self) -> None:
        """Take one action, and compare the picture off and on."""
        if self.random.random() < 0.3:
            self._leave_slow_states()
        name = self.random.choice(list(ACTIONS))
        action = ACTIONS[name](self.random, self.state, self.server)
        self.done.append(f"{len(self.done)}: {name}: {action}")
        off, on = both(self.random, self.state, self.server)
        if isinstance(off, Refused) or isinstance(on, Refused):
            # such as a latent upscaler with an inpainting model: right where both are refused
            where = self.refused if str(off) == str(on) else self.wrong
            where.append(f"{self.done[-1]}: off: {off}, on: {on}")
            return
        self.served += on.served
        if off.decibels(on) < MIN_DB and self._is_unsteady(off, on):
            on = off
        if off.decibels(on) < MIN_DB or off.served:
            difference = f"{off.decibels(on):.1f} dB, off served {off.served}"
            made_with = f"{json.dumps(self.state.body())} {self.state.settings}"
            self.wrong.append(f"{self.done[-1]}: {difference}; {made_with}")
        self.memory.append(self.server.memory())
        shown = f"{off.decibels(on):.1f} dB, served {on.served}, {self.memory[-1]:.0f} MB"
        print(self.done[-1], shown, flush=True)

    def _leave_slow_states(self) -> None:
        """Leave what makes pictures slow or keeps compiled code out: it must not stay long."""
        self.state.hires.clear()
        self.state.refiner.clear()
        self.state.control.clear()
        settings = {"lora_functional": False, "token_merging_ratio": 0.0}
        self.state.settings.update(settings)
        self.server.options(**settings)

    def _is_unsteady(self, off: Pictures, on: Pictures) -> bool:
        """Return whether the WebUI's own state changed between the two pictures."""
        again, second = both(self.random, self.state, self.server)
        assert isinstance(again, Pictures), again
        assert isinstance(second, Pictures), second
        same = min(again.decibels(second), max(again.decibels(on), second.decibels(off)))
        if same < MIN_DB:
            return False
        self.unsteady.append(f"{self.done[-1]}: {off.decibels(again):.1f} dB off against off")
        return True

    def peaks(self) -> list[float]:
        """Return the largest memory in each third of the walk."""
        third = max(1, len(self.memory) // 3)
        parts = [self.memory[k : k + third] for k in range(0, 3 * third, third)]
        return [max(part) for part in parts if part]


def _start(launch: Launch, webui: Path, folder: Path) -> Server:
    if not CONTROLNET:
        return launch()
    (folder / "walk").mkdir()
    checkpoint = webui / "models" / "Stable-diffusion" / "tinyA.safetensors"
    adapter = t2i_adapter(shapes_of(checkpoint), 1)
    save_file(adapter, folder / "walk" / "t2iadapter_tiny.safetensors")
    extension = Path(CONTROLNET).resolve()
    server = launch("--controlnet-dir", str(folder / "walk"), others=[extension])
    listed = server.get("/controlnet/model_list?update=true")["model_list"]
    server.names = {n.split(" [")[0]: n for n in listed}
    return server


def _take_memory(server: Server) -> None:
    """Take what any walk takes at most, so that only what comes on top of it counts as growth.

    Two models with the base weights of LoRAs, off and on, and the largest pictures.
    """
    server.options(sd_checkpoints_limit=2)
    for model in ("tinyInpaint", "same.ckpt", "tinyB", "tinyA"):
        server.options(sd_model_checkpoint=model)
        more = {} if model == "tinyInpaint" else HIRES
        for enabled in (False, True):
            server.options(accel_enable=enabled)
            server.make(
                prompt="a cat <lora:loraA:1> <lora:norm:1>", batch_size=2, width=192, **more
            )
    server.options(sd_checkpoints_limit=1)


def test_pictures_stay_the_same_off_and_on_in_a_random_walk(
    launch: Launch, webui: Path, folder: Path
) -> None:
    server = _start(launch, webui, folder)
    # tiles small enough to act at 128 pixels
    server.options(**DEFAULTS | {"hypertile_max_tile_unet": 64})
    server.wait_ready()
    _take_memory(server)
    walk = Walk(server, random.Random(SEED), memory=[server.memory()])
    compiles = server.status()["counters"]["compiles"]
    for _ in range(LENGTH):
        walk.step()
    compiled = server.status()["counters"]["compiles"] - compiles
    memory, peaks = walk.memory, walk.peaks()
    outcome = (
        f"random walk, seed {SEED}: {LENGTH} actions, {len(walk.wrong)} wrong, "
        f"{walk.served} served by compiled code, {compiled} compiles, "
        f"{len(walk.refused)} refused by the WebUI off as on, "
        f"{len(walk.unsteady)} where the WebUI did not repeat itself {walk.unsteady}; "
        f"MB at start, middle, end: {memory[0]:.0f}, {memory[len(memory) // 2]:.0f}, "
        f"{memory[-1]:.0f}, peaks by third {peaks}"
    )
    rows.append(outcome)
    server.stop()
    assert not walk.wrong, "\n".join([outcome, *walk.wrong, "all actions:", *walk.done])
    assert compiled == 0
    assert len(walk.unsteady) <= LENGTH / 30
    assert len(walk.refused) <= LENGTH / 20, walk.refused
    assert walk.served > LENGTH / 3
    assert peaks[-1] < peaks[0] * 1.15 + 200, outcome
