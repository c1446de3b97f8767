"""Pictures that a WebUI made, and how far apart two are."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .client import Client


@dataclass
class Pictures:
    """What one request made. `pixels`: [H, W, 3] float64 from 0 to 255."""

    pixels: list[np.ndarray]
    infotexts: list[str]
    seconds: float

    @staticmethod
    def decode(images: list[str], infotexts: list[str], seconds: float) -> Pictures:
        """Build them from PNGs in base64."""
        return Pictures(
            [
                np.asarray(Image.open(io.BytesIO(base64.b64decode(i))).convert("RGB"), np.float64)
                for i in images
            ],
            infotexts,
            seconds,
        )

    def same(self, other: Pictures) -> bool:
        """Return whether both are equal to the bit."""
        return len(self.pixels) == len(other.pixels) and all(
            map(np.array_equal, self.pixels, other.pixels)
        )

    def decibels(self, other: Pictures) -> float:
        """Return the PSNR of the worst pair: 99 for equal ones, 0 for other numbers or sizes."""
        if [a.shape for a in self.pixels] != [b.shape for b in other.pixels] or not self.pixels:
            return 0.0
        errors = [((a - b) ** 2).mean() for a, b in zip(self.pixels, other.pixels, strict=True)]
        return 99.0 if max(errors) == 0 else float(10 * np.log10(255**2 / max(errors)))

    @property
    def served(self) -> bool:
        """Whether the infotexts say that compiled code served every one."""
        return all("Accel: " in text for text in self.infotexts)


def make(client: Client, payload: Mapping[str, Any], route: str = "txt2img") -> Pictures:
    """Let the WebUI make pictures. Raises Refused."""
    began = time.perf_counter()
    answer = client.post(f"/sdapi/v1/{route}", payload)
    seconds = time.perf_counter() - began
    return Pictures.decode(answer["images"], json.loads(answer["info"])["infotexts"], seconds)
