"""Builds engines. It needs no GPU: the engine's own kernels are made at its first use.

As a program it is a child of the process that makes images: a build computes for many seconds and
takes up to 1 GB of memory. It reads a request from a file and writes the engine beside it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import CompileFailed
from ....model.architecture import Architecture
from ....model.specs import Spec, spec_from_dict, spec_to_dict
from ..process_tree import end_this
from .libraries import load, logger_of, no_message_boxes
from .network import Network, unet_network, unit_network
from .writer import Writer

CARDS: dict[str, tuple[str, ...]] = {"ampere+": (), "turing": ("SM75",)}
"""TensorRT's names of the cards that one engine is for; by default all from Ampere on."""

WEIGHTS_FILE = "weights"

LATENTS = {"B": (1, 2, 16), "H": (8, 64, 256), "W": (8, 64, 256), "L": (1, 77, 1000)}
"""Smallest, usual and largest sizes that an engine for a whole UNet takes: H and W in latents."""

PIXELS = {**LATENTS, "H": (1, 64, 256), "W": (1, 64, 256)}
"""The same for a unit, whose H and W are those of its own level."""


def build(
    network: Network,
    dtype: str,
    cards: str,
    channels_last: bool = False,
    constants: Mapping[str, int] | None = None,
) -> bytes:
    """Return a serialized engine, whose inputs are the network's activations and weights.

    With `constants`, the address of each weight in memory, they are built in.
    Raises ImportError without TensorRT for RTX, CompileFailed with TensorRT's reason.
    """
    trt = load()
    logger = logger_of(trt)
    # The memory of activations is torch's, so that a call can be recorded in a CUDA graph. Where
    # TensorRT has no fused attention for the width of the heads, it cannot promise that.
    for recordable in (True, False):
        builder = trt.Builder(logger)
        flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        target = builder.create_network(1 << int(flag))
        Writer(trt, target, network, dtype, channels_last, constants).write()
        config = _config(trt, builder, network, cards, recordable)
        engine = builder.build_serialized_network(target, config)
        if engine is not None:
            return bytes(engine)
    raise CompileFailed(f"TensorRT cannot build this network: {logger.last_error()}")


def _config(trt: Any, builder: Any, network: Network, cards: str, recordable: bool) -> Any:
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network))
    if recordable:
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if named := CARDS[cards]:
        config.num_compute_capabilities = len(named)
        for i, name in enumerate(named):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    return config


def sizes_of(network: Network) -> Mapping[str, tuple[int, int, int]]:
    """Return the smallest, usual and largest value of each dynamic size of `network`."""
    return LATENTS if "timesteps" in network.activations else PIXELS


def _profile(builder: Any, network: Network) -> Any:
    profile, sizes = builder.create_optimization_profile(), sizes_of(network)
    for name, shape in network.activations.items():
        bounds = (tuple(n if isinstance(n, int) else sizes[n][i] for n in shape) for i in range(3))
        profile.set_shape(name, *bounds)
    return profile


def request(of: Architecture | Spec, dtype: str, cards: str) -> dict[str, Any]:
    """Return what `main` reads: the engine of a whole UNet or of a unit, as plain JSON values."""
    whole = isinstance(of, Architecture)
    what = {"unet": of.to_dict()} if whole else {"unit": spec_to_dict(of)}
    return {**what, "dtype": dtype, "cards": cards}


def network_of(asked: Mapping[str, Any]) -> Network:
    """Return the network of a request. Raises KeyError or TypeError."""
    if "unet" in asked:
        return unet_network(Architecture.from_dict(asked["unet"]))
    return unit_network(spec_from_dict(asked["unit"]))


def main(arguments: list[str]) -> int:
    """Build what the file FOLDER/request.json asks for, into FOLDER/engine.

    Where there is a file FOLDER/weights, it holds the weights to build in, one after the other.
    When standard input ends, the parent is gone: then this process ends, and FOLDER with it.
    """
    folder = Path(arguments[0])
    threading.Thread(target=_follow_parent, args=(folder,), daemon=True).start()
    asked = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    network, file = network_of(asked), folder / WEIGHTS_FILE
    try:
        with contextlib.ExitStack() as held:
            constants = _addresses(network, asked["dtype"], file, held) if file.exists() else None
            is_unit = "unit" in asked
            engine = build(network, asked["dtype"], asked["cards"], is_unit, constants)
    except (CompileFailed, ImportError) as error:
        print(str(error), file=sys.stderr)
        return 1
    draft = folder / "engine.part"
    draft.write_bytes(engine)
    draft.replace(folder / "engine")
    return 0


def _follow_parent(folder: Path) -> None:
    sys.stdin.read()
    end_this(folder)


def _addresses(
    network: Network, dtype: str, file: Path, held: contextlib.ExitStack
) -> dict[str, int]:
    """Map `file` into memory; return where each weight begins, as long as `held` is open."""
    mapped = np.memmap(file, np.uint8, "c")
    held.callback(lambda: mapped)  # which keeps it
    item, found, at = 4 if dtype == "float32" else 2, {}, mapped.ctypes.data
    for name, shape in network.weights.items():
        found[name] = at
        at += item * math.prod(shape)
    return found


if __name__ == "__main__":
    if hasattr(os, "nice"):  # making images comes first
        os.nice(10)
    with no_message_boxes():
        sys.exit(main(sys.argv[1:]))
