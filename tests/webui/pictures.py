"""How close pictures have to be, and pictures to start from."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from lib_accel.tools.webui.pictures import Pictures as Pictures

MIN_DB = 60.0
"""The least PSNR of a picture with acceleration against one without, in float32.

They differ by the order of additions alone.
"""


def picture(width: int = 128, height: int = 128, mask: bool = False) -> str:
    """Return a PNG in base64: a pattern, or a mask whose middle is to be painted."""
    y, x = np.mgrid[:height, :width]
    if mask:
        middle = (abs(x - width / 2) < width / 4) & (abs(y - height / 2) < height / 4)
        a = middle.astype(np.uint8) * 255
    else:
        a = np.stack([x * 2 % 256, y * 2 % 256, (x + y) % 256], -1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(a).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
