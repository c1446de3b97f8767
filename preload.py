"""Command-line flags, asked for by the WebUI before it parses its own."""

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accel-backend",
        metavar="NAME",
        default=None,
        help="how the UNet is accelerated, over what Settings > Acceleration says: auto takes the best that works here; aoti is compiled "
        "once for all checkpoints of an architecture; jit is torch.compile, anew at each start; eager compiles nothing",
    )
    parser.add_argument(
        "--accel-store",
        metavar="DIR",
        default=None,
        help="folder for compiled UNets, by default ACCEL_STORE or the user's cache folder; it must not be writable by other users",
    )
    parser.add_argument(
        "--accel-store-readonly",
        action="store_true",
        help="only read from that folder (for servers that share one): aoti compiles nothing then",
    )
    parser.add_argument(
        "--accel-no-compile",
        action="store_true",
        help="compile nothing in this run; compiled UNets that are at hand serve",
    )
    parser.add_argument(
        "--accel-blocking",
        action="store_true",
        help="wait for the compiler before the first image (for servers); without it images are made unaccelerated meanwhile",
    )
    parser.add_argument(
        "--accel-disable",
        action="store_true",
        help="leave the UNet alone in this run, whatever the settings say",
    )
