"""The UNet itself: its architecture, read off a checkpoint's names and shapes, and a clean module.

This package exports what needs no torch. `unet.py` has the module, `UNet`.
"""

from .architecture import Architecture

__all__ = ["Architecture"]
