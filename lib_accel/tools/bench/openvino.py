"""OpenVINO as a peer on the CPU: diffusers' UNet converted once at fixed shapes, with its own copy of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import BackendUnavailable
from .measure import Call
from .reference import Reference

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def openvino_call(
    openvino: Any,
    reference: Reference,
    dtype: torch.dtype,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
) -> Call:
    """A call of the converted model, computing in `dtype`. `reference` holds float32 weights.

    Raises BackendUnavailable where OpenVINO cannot convert or compile it.
    """
    given = [t.float() for t in inputs if t is not None]
    options = {
        "INFERENCE_PRECISION_HINT": _HINTS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    try:
        with torch.no_grad():
            model = openvino.convert_model(
                reference, example_input=tuple(given), input=[tuple(t.shape) for t in given]
            )
        compiled = openvino.compile_model(model, "CPU", options)
    except Exception as e:  # its errors share no base class
        raise BackendUnavailable(
            f"OpenVINO failed: {type(e).__name__}: {str(e).strip().splitlines()[0]}"
        ) from e
    arrays = [t.numpy() for t in given]
    return lambda: torch.from_numpy(compiled(arrays)[0])
