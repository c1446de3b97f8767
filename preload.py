"""Command-line flags. The WebUI calls `preload` before it parses its own."""

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    """Add the flags. They override Settings > Acceleration."""
    parser.add_argument(
        "--accel-backend",
        metavar="NAME",
        default=None,
        help="how the UNet is accelerated; overrides Settings > Acceleration, which lists the "
        "backends; auto takes the best one that works here",
    )
    parser.add_argument(
        "--accel-store",
        metavar="DIR|URL",
        default=None,
        help="folder for compiled UNets; by default the one that ACCEL_STORE names, else one in "
        "the user's cache folder; other users must not be able to write to it; or the URL of a "
        "store that machines share (s3://, https://, file://), with that folder as its cache",
    )
    parser.add_argument(
        "--accel-fetch-seconds",
        metavar="N",
        type=float,
        default=None,
        help="how long compiling, and with --accel-blocking the first image, waits for the shared "
        "store (default: 30)",
    )
    parser.add_argument(
        "--accel-store-readonly",
        action="store_true",
        help="only read from that folder or shared store; nothing is compiled then",
    )
    parser.add_argument(
        "--accel-store-key",
        metavar="FILE",
        default=None,
        help="file with the key that signs and checks the code in that folder, for a folder that "
        "several users or machines share; by default the file that ACCEL_STORE_KEY_FILE names, "
        "else a key of your own, made at first use in your profile",
    )
    parser.add_argument(
        "--accel-trusted-keys",
        metavar="FILE",
        default=None,
        help="file of public keys whose owners may sign code for this machine; by default the file "
        "that ACCEL_TRUSTED_KEYS_FILE names; who can write it can have code run here",
    )
    parser.add_argument(
        "--accel-signing-key",
        metavar="FILE",
        default=None,
        help="file with a private key that signs what is compiled, for others who trust it; by "
        "default the file that ACCEL_SIGNING_KEY_FILE names",
    )
    parser.add_argument(
        "--accel-no-compile",
        action="store_true",
        help="compile nothing in this run; UNets that are compiled already are still used",
    )
    parser.add_argument(
        "--accel-blocking",
        action="store_true",
        help="let images wait for the compiler, for servers; without this flag they are made "
        "unaccelerated meanwhile",
    )
    parser.add_argument(
        "--accel-log-json",
        action="store_true",
        help="print what this extension says as JSON, one line for each event",
    )
    parser.add_argument(
        "--accel-disable",
        action="store_true",
        help="leave the UNet alone in this run, whatever the settings are",
    )
