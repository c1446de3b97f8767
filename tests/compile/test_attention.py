"""Which kernel of attention compiled code keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor

from lib_accel.compile.backends.aoti.compiler import compile_unit

from .. import tiny

FLAGS = torch.backends.cuda


@pytest.mark.skipif(
    not hasattr(FLAGS, "enable_cudnn_sdp"),
    reason="NOT RUN: torch before 2.5 has no cuDNN attention",
)
@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_not_cudnn_s_which_takes_no_key_of_length_1(
    enabled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only on cards of compute capability 9.0 and 10.0 would torch choose it."""
    seen: list[bool] = []

    def compile_and_package(*_: Any, **__: Any) -> None:
        seen.append(FLAGS.cudnn_sdp_enabled())
        raise RuntimeError("enough")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_and_package)
    before = FLAGS.cudnn_sdp_enabled()
    FLAGS.enable_cudnn_sdp(enabled)
    try:
        unit = next(unit for unit in tiny.target().units if hasattr(unit, "context_dim"))
        with pytest.raises(RuntimeError, match="enough"):
            compile_unit(unit, torch.float32, torch.device("cpu"), tmp_path / "unit")
        assert seen == [False]
        assert FLAGS.cudnn_sdp_enabled() == enabled, "images are made with what the user wants"
    finally:
        FLAGS.enable_cudnn_sdp(before)
