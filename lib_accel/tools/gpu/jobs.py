"""What is measured on a GPU, in the order of its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...model.architecture import Architecture
from ...model.presets import PRESETS, Structure


@dataclass(frozen=True)
class Job:
    """One thing to measure, in a process of its own: what fails or crashes in it costs it alone.

    `kind` names the function of measure.py that does it. `seconds` is what it takes on an H200
    about, with the start of its process and code that is compiled already (but engines of TensorRT
    are built); from "tests" on it is a guess. `size` in pixels.
    """

    name: str
    kind: str
    seconds: int
    family: str = "sd1"
    size: int = 512
    batch: int = 2
    variants: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()  # rows whose kernels are counted and timed

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Job:
        """Read what `dataclasses.asdict` made, after a way through JSON."""
        read: dict[str, Any] = {n: tuple(v) if type(v) is list else v for n, v in fields.items()}
        return cls(**read)


_PLAIN = ("stock", "stock+sdpa", "reference", "reference+sdpa")
_OURS = ("eager", "kernels", "aoti")
_WAYS = (*_PLAIN, *(f"{way}{graphs}" for way in _OURS for graphs in ("", "+graphs")))
_TENSORRT = ("reference+sdpa", "tensorrt", "tensorrt+graphs")
_CONTROLLED = ("aoti", "aoti+blocks", "eager+control", "aoti+control")
_PROFILED = ("stock+sdpa", *_OURS)


def _autotune(name: str, seconds: int, family: str, size: int) -> Job:
    variants = ("reference+sdpa", "compile-max-autotune", "aoti+graphs")
    return Job(f"{name}, torch.compile at its best", "ladder", seconds, family, size, 2, variants)


JOBS = (
    Job("SD1.5, compiled code", "code", 30),
    Job("SD1.5, fused kernels", "kernels", 15),
    Job("SD1.5, every way", "ladder", 60, variants=_WAYS, profile=_PROFILED),
    Job("SDXL, compiled code", "code", 30, "sdxl"),
    Job("SDXL, fused kernels", "kernels", 20, "sdxl"),
    Job("SDXL, every way", "ladder", 100, "sdxl", 1024, variants=_WAYS, profile=_PROFILED),
    Job("SD1.5, changes of LoRAs", "loras", 15),
    Job("SDXL, changes of LoRAs", "loras", 55, "sdxl", 1024),
    Job("SD1.5, first image", "first", 8, variants=("aoti",)),
    Job("SD1.5, first image without compiled code", "first", 8, variants=("stock+sdpa",)),
    Job("SDXL, first image", "first", 10, "sdxl", 1024, variants=("aoti",)),
    Job("SDXL, first image without compiled code", "first", 10, "sdxl", 1024, 2, ("stock+sdpa",)),
    Job("tests that need a GPU", "tests", 30),
    Job("SD1.5, with a ControlNet", "ladder", 35, variants=_CONTROLLED),
    Job("SD1.5, eight images", "ladder", 30, "sd1", 512, 16, ("reference+sdpa", "aoti+graphs")),
    Job("SD1.5, large", "ladder", 30, "sd1", 1024, 2, ("reference+sdpa", "aoti+graphs")),
    Job("SD1.5, TensorRT for RTX", "ladder", 180, variants=_TENSORRT),
    _autotune("SD1.5", 200, "sd1", 512),
    Job("SD1.5, units under torch.compile", "ladder", 90, variants=("reference+sdpa", "jit")),
    Job("SDXL, TensorRT for RTX", "ladder", 350, "sdxl", 1024, variants=_TENSORRT),
    _autotune("SDXL", 360, "sdxl", 1024),
)

UNIT_SECONDS = 25.0
"""What one process takes to compile a unit, about."""

_SMALL = {
    "sd1": Structure(64, (1, 1), (1, 0), 1, 16, linear=False, res_blocks=1),
    "sdxl": Structure(64, (1, 1), (0, 2), 2, 32, linear=True, adm_channels=12, res_blocks=1),
}


def architecture_of(family: str, dry_run: bool) -> Architecture:
    """Return the UNet of a family; for a dry run one like it, with five units."""
    return _SMALL[family].build() if dry_run else PRESETS[family]()
