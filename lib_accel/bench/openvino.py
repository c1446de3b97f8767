"""OpenVINO as a peer on the CPU: converted once at fixed shapes, its own weights' copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..unet import UNet
from .measure import Call


def openvino_call(openvino: Any, unet: UNet, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> Call:
    """A call of the converted model, in the precision of the UNet's weights (float32, or bfloat16 by its precision hint)."""
    given = [t.float() for t in inputs if t is not None]
    precise = UNet(unet.architecture).adopt({k: torch.nn.Parameter(p.float(), requires_grad=False) for k, p in unet.named_parameters()})
    with torch.no_grad():
        model = openvino.convert_model(precise, example_input=tuple(given), input=[tuple(t.shape) for t in given])
    hint = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[unet.dtype]
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(model, "CPU", options)
    arrays = [t.numpy() for t in given]
    return lambda: torch.from_numpy(compiled(arrays)[0])
