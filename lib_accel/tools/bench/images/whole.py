"""Whole images: text encoder, steps and VAE, by the WebUI's way, those of others and ours.

The sampler is the same in all rows, so that they differ in the networks alone. The extension leaves
the text encoder to the WebUI, so rows of ours have that of `stock`.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ....compile.jobs import Job
from ....compile.session import Session
from ....config import Config
from ....errors import AccelError, BackendUnavailable
from ....model.architecture import Architecture
from ....model.precision import relative_error
from ....model.random_weights import random_weights
from ....model.vae.network import DECODER, Half, Network
from ...demo.sampling import Conditions, sample
from ..ladder import make_inputs
from ..measure import (
    Call,
    Inputs,
    Row,
    flops,
    interleave,
    machine_of,
    matmul_rate,
    operations,
    or_left_out,
    timed,
)
from ..peers import compiled_call, openvino_call
from ..table import line
from ..variants import VARIANTS as ROWS
from ..variants import Setup, build
from ..weights import WeightCopy, copies_that_fit
from . import vae
from .text import TOKENS, TextEncoder, encoders, prompts

T = TypeVar("T")

PHASES = ("text", "steps", "vae")
VARIANTS = tuple(name for name in ROWS if name.removesuffix("+graphs") in vae.VARIANTS)
"""The rows of `bench` whose way a VAE has too; it has no CUDA graphs."""

FACTOR = 0.18215
"""Of the latents of SD1 and SD2, which a decoder is given divided by it."""


@dataclass(frozen=True)
class Plan:
    """What one run measures: images of `size` pixels and `steps` steps, with guidance.

    `variants` are rows of `bench`, each of which also names the way of its VAE. `vae_channels` are
    those of the VAE's widest level.
    """

    architecture: Architecture
    device: torch.device
    dtype: torch.dtype
    config: Config
    variants: Sequence[str]
    size: int = 512
    steps: int = 8
    rounds: int = 3
    vae_channels: int = 128


@dataclass
class Image:
    """One row: makes an image in each call, each of another prompt, and times its phases."""

    plan: Plan
    inputs: Inputs  # of the UNet, which are written before each step
    text: Call | None
    ids: Tensor
    unet: Call
    latent: Tensor  # of the decoder, written before it is called
    decode: Call
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PHASES})
    made: Tensor | None = None  # the last image, [1, 3, H, W] of about -1 to 1

    def __call__(self) -> Tensor:
        """Make an image."""
        plan, (x, times, context, _) = self.plan, self.inputs
        self.ids.copy_(prompts(len(self.seconds["text"]), plan.device))
        conditions = Conditions(plan.architecture, plan.size, plan.size, 1, plan.device)

        def step(given: Tensor, timesteps: Tensor, *_: object) -> Tensor:
            x.copy_(given)
            times.copy_(timesteps)
            return self.unet()

        def encode() -> None:
            if self.text is not None:
                context.copy_(self.text())

        def decode() -> Tensor:
            self.latent.copy_(latent / FACTOR)
            return self.decode()

        self._timed("text", encode)
        *_, latent = self._timed("steps", lambda: list(sample(step, conditions, plan.steps)))
        self.made = self._timed("vae", decode)
        return self.made

    def _timed(self, phase: str, call: Callable[[], T]) -> T:
        seconds, out = timed(call, self.plan.device)
        self.seconds[phase].append(seconds)
        return out


def measure(
    plan: Plan, say: Callable[[str], object], wait: Callable[[Job], object] = Job.wait
) -> dict[str, Any]:
    """Build every row, make images in turn, and return the result, ready for JSON.

    Raises AccelError where the copies of the weights do not fit into memory.
    """
    a, rows = plan.architecture, {name: Row(name) for name in plan.variants}
    made: dict[str, Image] = {}
    with torch.no_grad():
        makers = _Makers(plan, wait)
        for name, row in rows.items():
            say(f"preparing {name} ...")
            with or_left_out(row, say):
                make = functools.partial(makers.image, name)
                row.compile_s, made[name] = timed(make, plan.device)
        say("making images ...")
        rates = [matmul_rate(plan.dtype, plan.device)]
        interleave(made, rows, plan.device, plan.rounds, lambda: None, warm_up=1)
        rates.append(matmul_rate(plan.dtype, plan.device))
    pixels = {name: image.made for name, image in made.items() if image.made is not None}
    for name, image in pixels.items():
        rows[name].error = relative_error(image, next(iter(pixels.values())))
    needed = plan.steps * flops(a, makers.inputs) + operations(
        Network(makers.half).run, makers.latent
    )
    return {
        "date": datetime.date.today().isoformat(),
        "architecture": a.name,
        "device": plan.device.type,
        "size": plan.size,
        "steps": plan.steps,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "rounds": plan.rounds,
        "machine": machine_of(plan.device),
        "without_text": makers.without_text,
        "flops": needed,
        "floor_s": needed / (sum(rates) / 2),
        "rows": [
            row.to_dict() | {"phases": _phases(made.get(row.name), plan)} for row in rows.values()
        ],
    }


def _phases(image: Image | None, plan: Plan) -> dict[str, float | None]:
    """Return the median seconds of each phase, of the timed images alone."""
    if image is None:
        return dict.fromkeys(PHASES)
    return {phase: median(seconds[-plan.rounds :]) for phase, seconds in image.seconds.items()}


class _Makers:
    """Builds the rows. Raises AccelError where the copies of the weights do not fit."""

    def __init__(self, plan: Plan, wait: Callable[[Job], object]):
        self._plan, self._wait, self._session = plan, wait, Session()
        a, device, dtype = plan.architecture, plan.device, plan.dtype
        self._values = {n: p.data for n, p in random_weights(a, dtype, 0).items()}
        self._copies: dict[str, WeightCopy] = {}
        bytes_each = sum(value.nbytes for value in self._values.values())
        groups = {ROWS[name].group for name in plan.variants}
        if copies_that_fit(bytes_each, device) < len(groups):
            raise AccelError(
                f"{len(groups)} copies of the weights take {len(groups) * bytes_each / 2**30:.1f} "
                "GiB, more than is free. Name fewer variants, or use a smaller dtype"
            )
        self.inputs = make_inputs(a, 2, plan.size, TOKENS, device, dtype)
        self.half = Half.preset(DECODER, plan.vae_channels)
        side = plan.size // 8
        self.latent = torch.zeros(1, 4, side, side, device=device, dtype=dtype)
        self.without_text: str | None = None
        try:
            self._encoders = encoders(a.context_dim, device, dtype)
        except BackendUnavailable as error:
            self._encoders, self.without_text = None, str(error)

    def image(self, name: str) -> Image:
        """Build a row. Raises AccelError where it cannot be."""
        plan, group = self._plan, ROWS[name].group
        if group not in self._copies:
            self._copies[group] = WeightCopy(plan.architecture, self._values, plan.device)
        inputs = cast("Inputs", tuple(None if t is None else t.clone() for t in self.inputs))
        setup = Setup(
            plan.architecture, self._copies[group], inputs, plan.config, self._session, self._wait
        )
        ids, latent = prompts(0, plan.device), self.latent.clone()
        unet, _ = build(name, setup)
        decoder = vae.Plan(
            DECODER, plan.device, plan.dtype, plan.config, (), channels=plan.vae_channels
        )
        way = name.removesuffix("+graphs")  # which the VAE has not
        decode = vae.call_of(way, self.half, decoder, self._session, latent, self._wait)
        return Image(plan, inputs, self._text(name, ids), ids, unet.call, latent, decode)

    def _text(self, name: str, ids: Tensor) -> Call | None:
        if self._encoders is None:
            return None
        plain, fused = self._encoders
        if name == "compile":
            return compiled_call(fused, [ids])
        if name == "openvino":
            wide = TextEncoder(self._plan.architecture.context_dim, sdpa=True, like=plain).float()
            return openvino_call(wide, self._plan.dtype, [ids])
        encoder = fused if name.endswith("+sdpa") else plain
        return lambda: encoder(ids)


def table(r: Mapping[str, Any]) -> str:
    """Return a result of `measure` as Markdown."""
    m = r["machine"]
    lines = [
        f"Whole images of {r['architecture']}, {r['size']}x{r['size']}, {r['steps']} steps with "
        f"guidance, {r['dtype']}; {m['device_name']}, {m['threads']} threads, torch {m['torch']}; "
        f"{r['date']}.",
        f"{r['flops'] / 1e12:.3f} TFLOP in UNet and VAE; by the matmul rate measured before and "
        f"after, the floor is {r['floor_s']:.4g} s. The error is that against the first row.",
        *([f"Without a text encoder: {r['without_text']}."] if r["without_text"] else []),
        "",
        f"| variant | s an image (median of {r['rounds']}) | min - max | of the floor | text s "
        "| steps s | VAE s | built in s | peak GiB | error |",
        "| --- " * 10 + "|",
    ]
    for row in r["rows"]:
        phases = [f"{s:.4g}" for s in row["phases"].values() if s is not None]
        lines.append(line(row, lambda s, p=phases: (f"{s / r['floor_s']:.2f}x", *p), 4))
    return "\n".join(lines)
