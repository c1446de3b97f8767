"""A CPU and float32: `--use-cpu all --no-half --precision full`."""

from __future__ import annotations

import contextlib

import torch

device = cpu = torch.device("cpu")
unet_needs_upcast = False


def get_optimal_device_name() -> str:
    return "cpu"


def autocast() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
