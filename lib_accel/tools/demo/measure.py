"""What the demonstration measures, in the time that it has."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...compile.backends.eager import Eager
from ...compile.jobs import Job
from ...compile.units import describe
from ...config import Config
from ...errors import BadWeights
from ...model.architecture import Architecture
from ...model.precision import relative_error
from ...model.unet import Parameters, UNet
from ...model.weight_files import finite
from ...runtime.engine import Engine
from ...runtime.lora.files import Deltas, Merger
from ..bench.measure import Inputs, flops, matmul_rate, precise_call, timed
from ..bench.stock import attention_name, stock_unet
from ..report.verdict import Verdict
from .clock import ON_A_GPU, SMALL, Clock, Images, choose
from .images import Picture, make_pictures
from .sampling import Conditions, Denoiser, to_rgb

SHARE_OF_PRODUCTS = 0.7
"""From this share of the time on, products of matrices alone explain why nothing is gained."""


@dataclass(frozen=True)
class Plan:
    """What to show. `images` where the user has chosen size and steps."""

    architecture: Architecture
    parameters: Parameters
    config: Config
    device: torch.device
    loras: Sequence[tuple[Deltas, float]]
    lora_names: Sequence[str] = ()
    images: Images | None = None
    seed: int = 1


class Demo:
    """One run of the demonstration. `follow` shows a compiler's progress until it ends."""

    def __init__(self, plan: Plan, clock: Clock, follow: Callable[[Job, str], object]):
        self.plan, self.clock, self._follow = plan, clock, follow
        # compiled code changes the memory layout of its weights on a GPU
        apart = plan.device.type == "cuda"
        own = {n: nn.Parameter(p.clone(), False) for n, p in plan.parameters.items() if apart}
        self.stock = stock_unet(plan.architecture, own or plan.parameters)
        self._of_stock = Merger(own) if own else None
        self._clean = UNet(plan.architecture).adopt(plan.parameters)
        self.engine = Engine(self._clean, plan.config)
        self._unfinished = False

    def measure(self) -> tuple[dict[str, Any], list[Picture]]:
        """Compile, make the pictures, and return the result and the four pictures."""
        small = self._small_call()
        compiled = self._compile(small)
        images = self._images(self.clock.left - self._overhead(small), small)
        size, merger = images.size, Merger(dict(self._clean.named_parameters()))
        both: dict[str, Denoiser] = {"off": self.stock, "on": self.engine.compute}
        conditions = self._conditions(size)
        with self.clock.phase(f"making images of {size}x{size}, off and on in turn"):
            warm_up = make_pictures(both, conditions, images.steps, only=1)
            if not self.plan.images:  # the machine may have become slower
                pair = sum(p.seconds[0] for p in warm_up)
                images = images.within(self.clock.left - self._overhead(small), pair)
            pictures = make_pictures(both, conditions, images.steps)
        compiles = self.engine.counters.compiles
        with self.clock.phase("merging the LoRA"):
            merge_s, _ = timed(lambda: merger.set(self.plan.loras), self.plan.device)
            self._check_merged()
            if self._of_stock:
                self._of_stock.set(self.plan.loras)
        with self.clock.phase(f"making images of {size}x{size} with the LoRA"):
            with_lora = {f"{label}, LoRA": denoiser for label, denoiser in both.items()}
            pictures += make_pictures(with_lora, conditions, images.steps)
        with self.clock.phase("checking"):
            merger.set([])
            again = make_pictures({"on": self.engine.compute}, conditions, images.steps, only=1)[0]
            result = {
                **self._status(),
                **compiled,
                **self._compared(pictures, images),
                **self._errors(self._conditions(128)),
                "lora_merge_seconds": round(merge_s, 3),
                "compiles_for_lora": self.engine.counters.compiles - compiles,
                "same_after_lora": _equal(again.first, pictures[1].first),
            }
        self.engine.close()
        return result | {"phases": self.clock.phases}, pictures

    # -- getting ready

    def _conditions(self, size: int) -> Conditions:
        return Conditions(self.plan.architecture, size, size, self.plan.seed, self.plan.device)

    def _inputs(self, conditions: Conditions) -> Inputs:
        x = torch.cat([conditions.latent, conditions.latent])
        if conditions.extra is not None:
            x = torch.cat([x, conditions.extra], dim=1)
        timesteps = torch.tensor([500.0, 500.0], device=x.device)
        return x, timesteps, conditions.context, conditions.y

    @torch.no_grad()
    def _small_call(self) -> float:
        """Return the seconds of a small call, which tell what fits into the time."""
        if self.plan.images:
            return 0.0
        inputs = self._inputs(self._conditions(SMALL))
        with self.clock.phase("trying the machine"):
            return min(timed(lambda: self.stock(*inputs), self.plan.device)[0] for _ in range(2))

    def _images(self, left: float, small: float) -> Images:
        on_a_gpu = Images(*ON_A_GPU) if self.plan.device.type == "cuda" else None
        return self.plan.images or on_a_gpu or choose(left, small)

    def _overhead(self, small: float) -> float:
        """Seconds for merging, checking and writing the report."""
        return 6 + 3 * small

    def _compile(self, small: float) -> dict[str, Any]:
        """Get compiled code, if the time allows; return what was compiled."""
        units = [describe(unit) for unit in self.engine.target.units]
        eager = self.engine.config.backend == Eager.name
        with self.clock.phase(
            "getting ready" if eager else f"compiling {len(units)} units, or loading them"
        ):
            self.engine.prepare()
            job = self.engine.job
            if job:
                reserve = self._images(0, small).seconds(small) + self._overhead(small)
                self._wait(job, reserve)
            if job and job.cancelled:
                self._unfinished = True
                self.engine.close()
                config = replace(self.plan.config, backend="eager")
                self.engine = Engine(self._clean, config)
                self.engine.prepare()
        seconds = round(job.progress().elapsed_s, 1) if job else None
        made = job.compiled if job and self._unfinished else self.engine.counters.compiles
        return {
            "units": units,
            "compiled_units": made,
            "compile_seconds": seconds,
            "compile_unfinished": self._unfinished,
        }

    def _wait(self, job: Job, reserve: float) -> None:
        """Wait for the compiler, but keep `reserve` seconds for the images."""
        limit = None if self.plan.images else threading.Timer(self.clock.left - reserve, job.cancel)
        if limit:
            limit.daemon = True
            limit.start()
        try:
            self._follow(job, "compiling")
        finally:
            if limit:
                limit.cancel()
        if not job.cancelled:
            self.engine.take_up()

    def _check_merged(self) -> None:
        """Raise BadWeights where finite LoRAs made weights infinite."""
        bad = next((name for name, p in self._clean.named_parameters() if not finite(p)), None)
        if bad:
            raise BadWeights(
                f"with {', '.join(self.plan.lora_names)} merged, {bad} is too large for its dtype. "
                "Expected finite weights. Use smaller strengths or --dtype float32"
            )

    # -- the result

    def _status(self) -> dict[str, Any]:
        status = self.engine.status
        return {
            "backend": status.backend,
            "state": status.state,
            "reason": status.reason,
            "architecture": status.architecture,
            "dtype": status.dtype,
            "device": status.device,
            "gpu": self.plan.device.type != "cpu",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "stock_attention": attention_name(self.plan.device),
            "artifact": status.artifact,
        }

    def _compared(self, pictures: list[Picture], images: Images) -> dict[str, Any]:
        off, on, off_lora, on_lora = pictures
        plain, with_lora = (
            Verdict.of(a.seconds, b.seconds) for a, b in ((off, on), (off_lora, on_lora))
        )
        pixels = [to_rgb(p.latent, self.plan.architecture).int() for p in pictures]
        differ = [(a - b).abs() for a, b in (pixels[:2], pixels[2:])]
        return {
            "size": images.size,
            "steps": images.steps,
            "seconds_of_steps": {p.label: [round(s, 5) for s in p.seconds] for p in pictures},
            "speed": plain.to_dict(),
            "speed_with_lora": with_lora.to_dict(),
            "largest_pixel_difference": max(int(d.max()) for d in differ),
            "share_of_differing_pixels": max(float((d > 0).float().mean()) for d in differ),
            "latent_difference": relative_error(on.latent, off.latent),
            "latent_difference_lora": relative_error(on_lora.latent, off_lora.latent),
            "lora_effect": relative_error(off_lora.latent, off.latent),
            **self._bound(statistics.median(off.seconds), images.size),
        }

    def _bound(self, stock_s: float, size: int) -> dict[str, Any]:
        """Return the least seconds of a step: its operations at the rate of large products."""
        inputs = self._inputs(self._conditions(size))
        rate = matmul_rate(self._clean.dtype, self.plan.device)
        least = flops(self.plan.architecture, inputs) / rate
        return {"least_seconds": least, "products_explain": least > SHARE_OF_PRODUCTS * stock_s}

    def _errors(self, conditions: Conditions) -> dict[str, Any]:
        """Compare the errors of one small UNet call against higher precision."""
        inputs = self._inputs(conditions)
        reference = precise_call(
            self.engine.architecture, dict(self._clean.named_parameters()), *inputs
        )
        with torch.no_grad():
            off, plain, on = (
                relative_error(f(*inputs), reference)
                for f in (self.stock, self._clean, self.engine.compute)
            )
        # as compile/accuracy.py: torch's own kernels, with its own attention, are the measure
        allowed = 1.25 * max(off, plain) + torch.finfo(self._clean.dtype).eps / 4
        return {"error_off": off, "error_on": on, "error_ok": on <= allowed}


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)
