"""What is computed in which precision, and how far two results are apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def wider(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What values of `dtype` are summed in and compared in: float64 for float32 where the device has it, else float32."""
    return (
        torch.float64
        if dtype in (torch.float32, torch.float64) and device.type in ("cpu", "cuda")
        else torch.float32
    )


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Without autocast; also where this torch knows none for the device (Apple's, before 2.5) and would refuse to switch it off."""
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:
        return contextlib.nullcontext()


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Without TF32, which keeps 10 bits of a factor: the WebUI switches it on for some cards, torch for convolutions."""
    if device.type != "cuda":
        yield
        return
    switches = [_tf32(torch.backends.cuda.matmul, torch.backends.cuda.matmul)]
    switches += [_tf32(torch.backends.cudnn, getattr(torch.backends.cudnn, "conv", None))]
    on = [
        (owner, name, off, value)
        for owner, name, off in switches
        if (value := getattr(owner, name)) != off
    ]
    try:
        for owner, name, off, _ in on:
            setattr(owner, name, off)
        yield
    finally:
        for owner, name, _, value in on:
            setattr(owner, name, value)


def _tf32(owner: Any, newer: Any) -> tuple[Any, str, object]:
    """What switches it off. From torch 2.9 on there are two ways: the old one raises once somebody has used the new one."""
    try:
        _ = owner.allow_tf32
    except RuntimeError:
        return newer, "fp32_precision", "ieee"
    return owner, "allow_tf32", False


def relative_error(value: Tensor, reference: Tensor) -> float:
    """`||value - reference|| / ||reference||`, in the reference's precision; NaN when the shapes differ."""
    if value.shape != reference.shape:
        return float("nan")
    return ((value.to(reference.dtype) - reference).norm() / reference.norm()).item()
