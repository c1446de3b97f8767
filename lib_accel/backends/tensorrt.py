"""TensorRT through torch-tensorrt: its place. It says why it does not serve yet."""

from __future__ import annotations

import importlib.util

from ..config import Config
from ..environment import Target
from ..errors import BackendUnavailable
from ..jobs import Code, Job
from ..store import ArtifactStore


class TensorRT:
    name = "tensorrt"

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        if target.machine.device_type != "cuda":
            return f"TensorRT needs an NVIDIA GPU; this is {target.machine.device_type}"
        if importlib.util.find_spec("torch_tensorrt") is None:
            return "torch-tensorrt is not installed; pip install torch-tensorrt in the version of your torch"
        return "torch-tensorrt is installed, but this version of the extension has no use for it yet; choose aoti"

    def ready(self, target: Target, store: ArtifactStore) -> Code | None:
        return None

    def start(self, target: Target, store: ArtifactStore) -> Job:
        raise BackendUnavailable("this version of the extension makes no TensorRT engines; choose aoti")
