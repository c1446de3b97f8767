"""The arguments of `bench webui`."""

from __future__ import annotations

import argparse
import re

from .common import Commands, add_results_argument, command, image_size, number_up_to, positive

_MORE = """The WebUI must run with --api and with this extension. The same images are made with
acceleration off and on, in turn, so that a machine which becomes slower does so for both. Close
other programs first, and make no images meanwhile. At the end the switch is as it was before, also
after Ctrl-C. With --lora, images are made without a LoRA, with the first one, and with ten: where
fewer are named they repeat, with a share of the strength.

The exit status is 1 where an infotext lacks its `Accel:`, or has one with acceleration off.

examples:
  PROGRAM bench webui --url http://127.0.0.1:7860
  PROGRAM bench webui --steps 20 --size 512 --lora style:0.8"""


def _url(text: str) -> str:
    """Parse the address of a WebUI; a browser shows it without `http://`."""
    url = text if "://" in text else f"http://{text}"
    if not re.fullmatch(r"https?://[^/\s]+\S*", url):
        raise argparse.ArgumentTypeError(f"{text!r}: expected one like http://127.0.0.1:7860")
    return url


def add(actions: Commands) -> None:
    """Add `webui` to the actions of `bench`."""
    summary = "measure what the extension brings in a running WebUI"
    p = command(actions, "webui", summary, _MORE)
    p.set_defaults(command="bench_webui")
    text = "address of the WebUI"
    p.add_argument("--url", type=_url, metavar="URL", default="http://127.0.0.1:7860", help=text)
    text = "user and password of --api-auth or --gradio-auth"
    p.add_argument("--auth", metavar="USER:PASSWORD", help=text)
    text = "steps of an image; a quarter of them is measured too"
    p.add_argument("--steps", type=_steps, metavar="N", default=20, help=text)
    text = "width and height in pixels"
    p.add_argument("--size", type=image_size, metavar="N", default=512, help=text)
    text = "a LoRA of the WebUI by its name in prompts, and its strength; may be repeated"
    p.add_argument(
        "--lora", action="append", type=lora, metavar="NAME[:STRENGTH]", default=[], help=text
    )
    text = "how often each image is made"
    p.add_argument("--rounds", type=positive, metavar="N", default=4, help=text)
    p.add_argument("--sampler", metavar="NAME", default="Euler", help="name of the sampler")
    add_results_argument(p)


def _steps(text: str) -> int:
    steps = number_up_to(150)(text)  # more than that the WebUI refuses
    if steps < 2:
        raise argparse.ArgumentTypeError("expected 2 to 150 steps; two step counts are compared")
    return steps


def lora(text: str) -> tuple[str, float]:
    """Parse `NAME` or `NAME:STRENGTH`."""
    match = re.fullmatch(r"([^:<>]+)(?::([-+]?\d*\.?\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME or NAME:STRENGTH")
    return match[1], float(match[2] or 1)
