"""The arguments of `cost`."""

from __future__ import annotations

import shlex

from .common import Commands, add_store_arguments, command, path, positive

_MORE = """Two WebUIs run at the same time, one of them with the extension, both with settings of
their own in a temporary folder. They make the smallest pictures in turn. Printed are the time of
the extension at start-up, in a step, in a picture while it is switched off, and the time of
changing LoRAs with and without it. The first run compiles.

example:
  PROGRAM cost --webui ~/stable-diffusion-webui --checkpoint model.safetensors"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    summary = "measure what the extension costs in a WebUI besides computing"
    p = command(commands, "cost", summary, _MORE)
    text = "folder of a stable-diffusion-webui 1.10"
    p.add_argument("--webui", type=path, metavar="DIR", required=True, help=text)
    text = "a file, by its path or its name in the WebUI's folder of checkpoints"
    p.add_argument("--checkpoint", type=path, metavar="FILE", required=True, help=text)
    text = "the WebUI's interpreter (default: the one in `venv` in or beside its folder)"
    p.add_argument("--python", type=path, metavar="FILE", help=text)
    text = "run the WebUI on the CPU, in float32"
    p.add_argument("--cpu", action="store_true", help=text)
    text = 'more flags for the WebUI, such as --flags="--medvram --xformers"'
    p.add_argument("--flags", type=shlex.split, metavar="TEXT", default=[], help=text)
    text = "pictures with each setting"
    p.add_argument("--pictures", type=positive, metavar="N", default=50, help=text)
    add_store_arguments(p)
