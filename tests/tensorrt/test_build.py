"""Engines are really built here, at small widths; what the network holds is inspected."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lib_accel.compile.backends.tensorrt import build as building
from lib_accel.compile.backends.tensorrt import child
from lib_accel.compile.backends.tensorrt.build import build, network_of, request
from lib_accel.compile.backends.tensorrt.engines import AMPERE, BLACKWELL, TURING, Wanted
from lib_accel.compile.backends.tensorrt.libraries import logger_of
from lib_accel.compile.backends.tensorrt.network import Network, unet_network, unit_network
from lib_accel.compile.backends.tensorrt.run import Engine
from lib_accel.compile.backends.tensorrt.writer import OUTPUT, Writer
from lib_accel.compile.units import describe, units_of
from lib_accel.errors import ArtifactRejected, CompileFailed
from lib_accel.model import specs
from lib_accel.model.architecture import Architecture
from lib_accel.store import ArtifactStore

from ..aoti.kit import posix
from ..aoti.processes import until
from ..tiny import TINY, WITH_Y

LAYERS = [unit for unit in units_of(TINY) if not isinstance(unit, specs.Embedding)]
trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


def written(network: Network, dtype: str = "float16", channels_last: bool = False) -> Any:
    """Return the network of TensorRT, and what must live as long."""
    logger = logger_of(trt)
    builder = trt.Builder(logger)
    target = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    Writer(trt, target, network, dtype, channels_last).write()
    return target, builder, logger


def layers(target: Any) -> list[Any]:
    return [target.get_layer(i) for i in range(target.num_layers)]


@pytest.mark.parametrize("unit", LAYERS, ids=describe)
def test_a_unit_is_built(unit: specs.Spec):
    assert len(build(unit_network(unit), "float16", "ampere+", channels_last=True)) > 100_000


@pytest.mark.parametrize(
    ("dtype", "cards"), [("bfloat16", "ampere+"), ("float32", "ampere+"), ("float16", "turing")]
)
def test_a_unit_is_built_in_each_dtype_and_for_older_cards(dtype: str, cards: str):
    assert len(build(unit_network(LAYERS[0]), dtype, cards, channels_last=True)) > 100_000


def test_a_whole_unet_is_built():
    assert len(build(unet_network(WITH_Y), "float16", "ampere+")) > 100_000


def test_a_refusal_of_tensorrt_is_told():
    unit = LAYERS[0]
    with pytest.raises(CompileFailed, match=r"TensorRT cannot build .* HW-specific datatypes"):
        build(unit_network(unit), "bfloat16", "turing")


@pytest.mark.parametrize("of", [TINY, WITH_Y, *LAYERS], ids=lambda of: type(of).__name__)
def test_a_request_names_the_same_network(of: Architecture | specs.Spec):
    whole = isinstance(of, Architecture)
    assert network_of(request(of, "float16", "ampere+")) == (
        unet_network(of) if whole else unit_network(of)
    )


def test_every_weight_is_an_input_and_nothing_large_is_a_constant():
    network = unet_network(WITH_Y)
    target, *_ = written(network)
    inputs = {target.get_input(i).name: target.get_input(i) for i in range(target.num_inputs)}
    assert list(inputs) == [*network.activations, *network.weights]
    assert all(tuple(inputs[name].shape) == shape for name, shape in network.weights.items())
    constants = [layer for layer in layers(target) if layer.type == trt.LayerType.CONSTANT]
    assert max(map(_elements, constants)) <= 64


def _elements(layer: Any) -> int:
    return trt.volume(layer.get_output(0).shape)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_only_norms_and_sinusoids_are_computed_in_float32(dtype: str):
    target, *_ = written(unet_network(TINY), dtype)
    wide = {
        layer.type.name
        for layer in layers(target)
        if layer.num_outputs and layer.get_output(0).dtype == trt.float32
    }
    norms, angles = {"NORMALIZATION", "CAST", "SHUFFLE"}, {"CONSTANT", "ELEMENTWISE", "UNARY"}
    assert wide == norms | angles | {"CONCATENATION"}
    sizes = [
        _elements(layer)
        for layer in layers(target)
        if layer.type == trt.LayerType.ELEMENTWISE and layer.get_output(0).dtype == trt.float32
    ]
    assert len(sizes) == 1  # angles: timesteps times frequencies


def test_a_unit_takes_and_gives_channels_last():
    unit = LAYERS[0]
    target, *_ = written(unit_network(unit), channels_last=True)
    nhwc = 1 << int(trt.TensorFormat.HWC8)
    assert target.get_input(0).allowed_formats == nhwc
    assert target.get_output(0).allowed_formats == nhwc
    assert target.get_output(0).name == OUTPUT


def test_sizes_stay_dynamic():
    target, *_ = written(unet_network(TINY))
    assert tuple(target.get_input(0).shape) == (-1, 4, -1, -1)
    assert tuple(target.get_output(0).shape) == (-1, 4, -1, -1)


def test_the_largest_sizes_are_those_that_the_webui_offers():
    assert building.LATENTS["H"][2] * 8 == 2048  # the end of its sliders
    assert building.LATENTS["B"][2] == 16


def test_the_cards_that_are_served_are_those_that_tensorrt_knows():
    known = {name for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    names = {f"SM{major}{minor}" for major, minor in (TURING, *AMPERE, BLACKWELL)}
    assert known == names | {"SM121"}


@pytest.mark.parametrize("name", [b"", b"no engine", bytes(5000)], ids=len)
def test_what_is_no_engine_is_a_sentence(name: bytes):
    for _ in range(2):  # TensorRT speaks to the first logger of a process alone
        with pytest.raises(ArtifactRejected, match="the engine does not fit: malformed engine"):
            Engine(trt, name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says why TensorRT finds no card")
def test_what_tensorrt_complains_of_is_told_each_time():
    engine = build(unit_network(LAYERS[0]), "float16", "ampere+")
    for _ in range(2):
        with pytest.raises(ArtifactRejected, match="the engine does not fit: Error reading CUDA"):
            Engine(trt, engine)


def test_weights_are_built_in_by_a_child_that_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "temporary_folder", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    wanted = Wanted(LAYERS[0], "float16", "ampere+", "tiny", trt.__version__)
    count = sum(map(trt.volume, wanted.network.weights.values()))
    watched: list[int] = []
    engine = child.build_with(
        wanted,
        lambda stream: stream.write(torch.randn(count).half().numpy().tobytes()),
        lambda: watched.append(1),
    )
    plain = build(wanted.network, "float16", "ampere+", channels_last=True)
    packed = [len(zlib.compress(each)) for each in (engine, plain)]
    assert packed[0] - packed[1] > count
    assert watched
    assert [*tmp_path.iterdir()] == []


def test_an_engine_is_kept_packed_with_its_manifest_and_read_again(tmp_path):
    store = ArtifactStore(tmp_path)
    wanted = Wanted(LAYERS[0], "float16", "ampere+", "tiny", trt.__version__)
    child.build_into(store, wanted)
    (entry,) = store.list()
    assert entry.artifact is not None
    assert entry.artifact.manifest["made_with"] == {"tensorrt_rtx": trt.__version__}
    engine = child.read_engine(store, entry.key)
    assert len(engine) > 2 * entry.bytes
    (entry.path / child.ENGINE_FILE).write_bytes(b"damaged")
    with pytest.raises(ArtifactRejected, match="damaged"):
        child.read_engine(store, entry.key)


PARENT = """
import sys
from pathlib import Path

from lib_accel.compile.backends.tensorrt.child import build_into
from lib_accel.compile.backends.tensorrt.engines import Wanted
from lib_accel.model.presets import sd1
from lib_accel.store import ArtifactStore

store = ArtifactStore(Path(sys.argv[1]))
build_into(store, Wanted(sd1(), "float16", "ampere+", "SD1", sys.argv[2]))
"""


@posix
@pytest.mark.slow
def test_a_killed_parent_leaves_no_child_and_no_file(tmp_path: Path, root: Path):
    """It is killed where TensorRT computes for many seconds."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", PARENT, str(tmp_path / "store"), trt.__version__]
    parent = subprocess.Popen(command, cwd=root, env=os.environ | {"TMPDIR": str(temporary)})
    (child,) = until("the child", lambda: psutil.Process(parent.pid).children())
    until("TensorRT", lambda: any(trt.__name__ in file.path for file in child.memory_maps()))
    time.sleep(3)
    parent.kill()
    parent.wait()
    until("the child's end", lambda: not child.is_running(), patience_s=10)
    until("an empty folder", lambda: not [*temporary.iterdir()], patience_s=10)
