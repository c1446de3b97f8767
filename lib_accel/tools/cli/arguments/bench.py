"""The arguments of `bench`."""

from __future__ import annotations

import argparse

from ....model.specs import NORM_GROUPS
from . import bench_webui
from .common import (
    Commands,
    add_device_arguments,
    add_results_argument,
    add_store_arguments,
    command,
    home,
    image_size,
    number_up_to,
    path,
    positive,
)

_MORE = """Every variant is one row. All rows run in this process on the same inputs and on random
weights of the same values, and are timed in turn. Close other programs first, and keep the clock
of a GPU fixed. Each group of rows (diffusers', torch.compile's, ours by backend) has its own copy
of the weights. Where the copies do not fit into memory together, the groups take turns.

variants (default: all but stock+sdpa, compile-max-autotune, jit, tensorrt, and those with blocks or
control):
  stock                 what the WebUI does by itself: its default attention
  stock+sdpa            the same with fused attention (the WebUI's --opt-sdp-attention)
  reference             diffusers' UNet with plain attention; stock in its place \
where there is no diffusers
  reference+sdpa        the same with fused attention
  compile               the same under torch.compile
  compile-max-autotune  the same under torch.compile in the mode max-autotune
  openvino              OpenVINO on a CPU (pip install openvino)
  eager, eager+graphs   our UNet run by torch, and with CUDA graphs
  kernels, kernels+graphs
                        fused kernels that NVRTC compiles (made first if they are not stored), and \
with CUDA graphs
  jit                   our units under torch.compile
  aoti, aoti+graphs     our compiled artifact from the store (made first if it is not there), and \
with CUDA graphs
  tensorrt, tensorrt+graphs
                        engines of TensorRT for RTX (pip install tensorrt_rtx)
  aoti+blocks           the same, called layer by layer as ControlNet does
  eager+control         eager with a control network, which changes the result: ignore its error
  aoti+control          the same with our compiled artifact

examples:
  PROGRAM bench
  PROGRAM bench --family sdxl --size 1024 --dtype float16 \
--variants reference+sdpa,aoti,aoti+graphs --loras 0,1,10
  PROGRAM bench --family sd1:64 --size 256 --rounds 3
  PROGRAM bench --device cuda:sm_86 --model --family sd1 --size 512"""

_MORE_OF_VAE = """The rows are stock (the WebUI's own way), stock+sdpa, reference (diffusers),
reference+sdpa, compile, openvino, eager, jit, kernels and aoti, on random weights of the
same values, timed in turn.

examples:
  PROGRAM bench vae
  PROGRAM bench vae --encoder --size 1024 --variants stock+sdpa,eager"""

_MORE_OF_IMAGE = """Each image has another prompt. A row computes text encoder, UNet and VAE in its
own way: with diffusers' networks (reference, compile, openvino; needs diffusers and transformers),
the WebUI's (stock) or ours. The sampler is the same, and all rows are timed in turn. Time to build
is apart.

examples:
  PROGRAM bench image
  PROGRAM bench image --steps 20 --variants stock,aoti
  PROGRAM bench image --family sd1:64 --vae-channels 32 --size 128 --steps 2"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    p = command(commands, "bench", "measure the ladder of variants on this machine", _MORE)
    text = "sd1, sd2, sdxl, sdxl-refiner (sd1:64 for another width), or a checkpoint file"
    p.add_argument("--family", type=home, metavar="NAME", default="sd1", help=text)
    text = "width and height in pixels"
    p.add_argument("--size", type=image_size, metavar="N", default=512, help=text)
    text = "batch of the UNet call; 2 is one image with guidance"
    p.add_argument("--batch", type=positive, metavar="N", default=2, help=text)
    text = "length of the prompt's embedding"
    p.add_argument("--tokens", type=positive, metavar="N", default=77, help=text)
    text = "timed calls of each variant, after three calls to warm up"
    p.add_argument("--rounds", type=positive, metavar="N", default=5, help=text)
    text = "which rows, in this order (default: see above)"
    p.add_argument("--variants", metavar="A,B", help=text)
    text = (
        "numbers of merged LoRAs (rank 32, all transformer layers), such as 0,1,10: adds tables of "
        "calls with them and of changing them"
    )
    p.add_argument("--loras", type=counts, metavar="N,N", default="0", help=text)
    text = "add a table of the kernels of the last variant"
    p.add_argument("--profile", action="store_true", help=text)
    text = "CPU threads (default: torch's own choice)"
    p.add_argument("--threads", type=number_up_to(1024), metavar="N", help=text)
    text = (
        "do without a GPU: count what a call launches on a pretend card, and model the times. "
        "Needs --device cuda:sm_86 (or 75, 80, 89, 90, 120), Linux and 7 GB; the rows are aoti, "
        "eager and stock"
    )
    p.add_argument("--model", action="store_true", help=text)
    text = "with --model: print this result of it again, if the source code is still the same"
    p.add_argument("--stored", type=path, metavar="FILE", help=text)
    add_results_argument(p)
    add_store_arguments(p)
    add_device_arguments(p)
    actions = p.add_subparsers(
        dest="action", title="instead of the ladder", metavar="webui, image or vae"
    )
    bench_webui.add(actions)
    _add_image(actions)
    _add_vae(actions)


def _add_image(actions: Commands) -> None:
    """Add `image` to the actions of `bench`."""
    p = command(actions, "image", "measure whole images: text encoder, steps, VAE", _MORE_OF_IMAGE)
    p.set_defaults(command="bench")
    text = "sd1, sd2, sdxl (sd1:64 for another width), or a checkpoint file"
    p.add_argument("--family", type=home, metavar="NAME", default="sd1", help=text)
    text = "channels of the VAE's widest level; 128 is that of SD1, SD2 and SDXL"
    p.add_argument("--vae-channels", type=channels, metavar="N", default=128, help=text)
    text = "width and height in pixels"
    p.add_argument("--size", type=image_size, metavar="N", default=512, help=text)
    p.add_argument("--steps", type=positive, metavar="N", default=8, help="steps of an image")
    text = "timed images of each variant, after one to warm up"
    p.add_argument("--rounds", type=positive, metavar="N", default=3, help=text)
    text, default = "which rows, in this order", "stock,reference,reference+sdpa,compile,aoti"
    p.add_argument("--variants", metavar="A,B", default=default, help=text)
    add_results_argument(p)
    add_store_arguments(p)
    add_device_arguments(p)


def _add_vae(actions: Commands) -> None:
    """Add `vae` to the actions of `bench`."""
    p = command(actions, "vae", "measure the VAE by itself", _MORE_OF_VAE)
    p.set_defaults(command="bench")
    text = "measure the encoder, not the decoder"
    p.add_argument("--encoder", action="store_true", help=text)
    text = "width and height in pixels"
    p.add_argument("--size", type=image_size, metavar="N", default=512, help=text)
    p.add_argument("--batch", type=positive, metavar="N", default=1, help="images in a call")
    text = "channels of the widest level; 128 is that of SD1, SD2 and SDXL"
    p.add_argument("--channels", type=channels, metavar="N", default=128, help=text)
    text = "timed calls of each variant, after three calls to warm up"
    p.add_argument("--rounds", type=positive, metavar="N", default=5, help=text)
    text = "which rows, in this order"
    p.add_argument("--variants", metavar="A,B", default="stock,stock+sdpa,eager,aoti", help=text)
    add_results_argument(p)
    add_store_arguments(p)
    add_device_arguments(p)


def channels(text: str) -> int:
    """Parse a width that GroupNorm can divide."""
    width = positive(text)
    if width % NORM_GROUPS:
        raise argparse.ArgumentTypeError(f"{text} channels: expected a multiple of {NORM_GROUPS}")
    return width


def counts(text: str) -> list[int]:
    """Parse `0,1,10`."""
    if not all(n.isdecimal() and len(n) < 5 for n in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers, such as 0,1,10")
    return [int(n) for n in text.split(",")]
