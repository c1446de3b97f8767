"""The peers that our UNet is measured against: diffusers' UNet, torch.compile and OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...compile.backends.jit import PRIVATE_FILES, private_options
from ...errors import BackendUnavailable
from ...model.architecture import Architecture
from ...model.specs import Block, Downsample, SpatialTransformer, Spec
from ..checkpoints.formats import LDM_PREFIX
from .measure import Call


class NoDiffusers(BackendUnavailable):
    """diffusers is not installed."""


class Reference(nn.Module):
    """diffusers' own UNet on the given Parameter objects; called as ours is.

    `sdpa` chooses fused attention; without it the scores of plain attention are held in memory.
    Raises NoDiffusers where it is missing, BackendUnavailable where it has no such UNet.
    """

    def __init__(
        self, architecture: Architecture, parameters: Mapping[str, nn.Parameter], sdpa: bool
    ):
        super().__init__()
        try:
            from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        except ImportError as e:
            raise NoDiffusers(f"diffusers is not installed ({e}); pip install diffusers") from e
        with torch.device("meta"):
            self.unet = UNet2DConditionModel(**_config(architecture))
        adopt(self.unet, _converted(self.unet, parameters))
        self.unet.set_attn_processor(AttnProcessor2_0() if sdpa else AttnProcessor())
        self.unet.eval()

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None
    ) -> Tensor:
        """Return `[B, out_channels, H, W]`; the shapes of the inputs are those of `Inputs`."""
        return self.unet(x, timesteps, context, class_labels=y, return_dict=False)[0]


def _converted(unet: Any, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
    """Return the weights by diffusers' names, by diffusers' conversion."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    named = {LDM_PREFIX + name: parameter for name, parameter in parameters.items()}
    try:
        return convert_ldm_unet_checkpoint(named, unet.config)
    except (KeyError, IndexError) as e:
        raise _no_twin(f"its conversion fails at {e}") from e


def adopt(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put these very weights in place of a network's own. Raises BackendUnavailable."""
    expected = {name: p.shape for name, p in network.named_parameters()}
    for name in expected.keys() | weights.keys():
        there = weights[name].shape if name in weights else None
        if expected.get(name) != there:
            raise _no_twin(f"{name} is {there} here and {expected.get(name)} there")
    for name, weight in weights.items():
        home, _, own = name.rpartition(".")
        is_one = isinstance(weight, nn.Parameter)  # else a view: a convolution as a matrix
        parameter = weight if is_one else nn.Parameter(weight, requires_grad=False)
        setattr(network.get_submodule(home), own, parameter)


def _no_twin(why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"diffusers has no network of this architecture: {why}; choose a preset family"
    )


def _config(a: Architecture) -> dict[str, Any]:
    """Return the diffusers configuration of a UNet whose levels are alike on both ways.

    SD1, SD2, SDXL, the refiner and their variants are.
    """
    levels = _levels(a)
    transformers = [_transformer(blocks[0]) for blocks in levels]
    some = next((t for t in transformers if t), None)
    if some is None:
        raise _no_twin("no level has a transformer")
    kinds = ["CrossAttnDownBlock2D" if t else "DownBlock2D" for t in transformers]
    config = {
        "in_channels": a.in_channels,
        "out_channels": a.out_channels,
        "block_out_channels": [blocks[0][0].out_channels for blocks in levels],  # type: ignore[union-attr]
        "layers_per_block": len(levels[0]),
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
        "transformer_layers_per_block": [t.depth if t else _middle_depth(a) for t in transformers],
        "cross_attention_dim": a.context_dim,
        # diffusers' name for the number of heads
        "attention_head_dim": [
            t.heads if t else _heads(a, blocks)
            for t, blocks in zip(transformers, levels, strict=True)
        ],
        "use_linear_projection": some.linear,
    }
    if a.adm_channels:
        config["class_embed_type"] = "projection"
        config["projection_class_embeddings_input_dim"] = a.adm_channels
    return config


def _levels(a: Architecture) -> list[list[Block]]:
    levels: list[list[Block]] = [[]]
    for block in a.input_blocks[1:]:
        if isinstance(block[0], Downsample):
            levels.append([])
        else:
            levels[-1].append(block)
    return levels


def _transformer(block: tuple[Spec, ...]) -> SpatialTransformer | None:
    return next((layer for layer in block if isinstance(layer, SpatialTransformer)), None)


def _middle_depth(a: Architecture) -> int:
    middle = _transformer(a.middle_block)
    return middle.depth if middle else 1


def _heads(a: Architecture, blocks: list[Block]) -> int:
    """Return the heads of a level without transformers: the middle block takes the last level's."""
    middle = _transformer(a.middle_block)
    return middle.heads if middle and blocks[-1][0].out_channels == middle.channels else 1  # type: ignore[union-attr]


_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def openvino_call(module: nn.Module, dtype: torch.dtype, inputs: Sequence[Tensor]) -> Call:
    """Return a call of a module in float32, converted by OpenVINO at the shapes of `inputs`.

    It computes in `dtype`, on the CPU, from a copy of the weights that OpenVINO makes, and reads
    the `inputs` anew in each call. Raises BackendUnavailable where OpenVINO is missing, or cannot
    convert or compile it.
    """
    try:
        import openvino  # type: ignore[import-not-found]
    except ImportError as e:
        raise BackendUnavailable(f"OpenVINO is not installed ({e}); pip install openvino") from e
    options = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    try:
        with torch.no_grad():
            given, shapes = tuple(map(_wide, inputs)), [tuple(t.shape) for t in inputs]
            model = openvino.convert_model(module, example_input=given, input=shapes)
        compiled = openvino.compile_model(model, "CPU", options)
    except Exception as e:  # its errors share no base class
        first_line = str(e).strip().splitlines()[0]
        raise BackendUnavailable(f"OpenVINO failed: {type(e).__name__}: {first_line}") from e
    return lambda: torch.from_numpy(compiled([_wide(t).numpy() for t in inputs])[0])


def widened(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the weights in float32, which `openvino_call` converts."""
    return {n: nn.Parameter(p.float(), requires_grad=False) for n, p in parameters.items()}


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.is_floating_point() else t


def compiled_call(module: nn.Module, inputs: Sequence[Any], mode: str = "default") -> Call:
    """Return a call of a module under torch.compile, which reads `inputs` anew in each call."""
    if inputs[0].device.type == "cuda":
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with PRIVATE_FILES:  # torch's own folder has a known name, where others can put code
        from torch._inductor import list_mode_options

        options = {**list_mode_options(mode), **private_options()}
        compiled = torch.compile(module, options=options)
        compiled(*inputs)
    return lambda: compiled(*inputs).clone()
