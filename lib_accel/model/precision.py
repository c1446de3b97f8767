"""Which precision is computed in, and the error that it costs."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def wider(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which values of `dtype` are summed and compared.

    float64 for float32 and float64 where the device has it (cpu, cuda), else float32.
    """
    return (
        torch.float64
        if dtype in (torch.float32, torch.float64) and device.type in ("cpu", "cuda")
        else torch.float32
    )


# Cached for the process, not for a model: another measurement could decide otherwise, and then two
# models in one process would need compiled code of two dtypes.
@functools.cache
def fastest_cpu_dtype(weights: torch.dtype) -> torch.dtype:
    """Return the dtype in which this CPU computes fastest with weights of dtype `weights`.

    Many CPUs multiply bfloat16 and float16 matrices at half the speed of float32 (they have no
    units for them, or slow ones). Weights then stay narrow in memory, and those of one layer at a
    time are widened. The first call takes about 0.1 s, because it measures.

    float32 must be faster by a quarter: where the two are close, a busy machine would choose now
    one and now the other, and each has compiled code of its own. float32 is also the answer where
    torch cannot multiply the narrow dtype (float16 in torch 2.1).
    """
    if weights not in (torch.bfloat16, torch.float16):
        return weights
    # Small products first: where torch has no fast one, a large one takes seconds (float16).
    for size, clearly in ((128, 10), (1024, 1.25)):
        try:
            narrow = _product_seconds(weights, size)
        except RuntimeError:
            return torch.float32
        if _product_seconds(torch.float32, size) * clearly < narrow:
            return torch.float32
    return weights


def _product_seconds(dtype: torch.dtype, size: int) -> float:
    """Return the seconds of one product of `size` x `size` matrices, the fastest of six."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    runs = []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, b)
        runs.append(time.perf_counter() - start)
    return min(runs)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off for the device.

    It does nothing where this torch has no autocast for the device (mps before torch 2.5), which
    refuses to switch it off.
    """
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:
        return contextlib.nullcontext()


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Switch TF32 off in the context, and on again where it was on; does nothing but on CUDA.

    TF32 rounds the factors of float32 products to 10 bits. The WebUI switches it on for some cards,
    and torch does so for convolutions.

    The switches belong to the process, and torch.compile guards on them: only a process that
    computes in one thread, and makes no images, may use this.
    """
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
    """Return what switches TF32 off: the object, its attribute and the value to set.

    From torch 2.9 on there are two attributes: reading the old one raises RuntimeError once
    somebody has set the new one.
    """
    try:
        _ = owner.allow_tf32
    except RuntimeError:
        return newer, "fp32_precision", "ieee"
    return owner, "allow_tf32", False


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return `||value - reference|| / ||reference||` (L2), computed in the reference's dtype.

    NaN when the shapes differ.
    """
    if value.shape != reference.shape:
        return float("nan")
    return ((value.to(reference.dtype) - reference).norm() / reference.norm()).item()
