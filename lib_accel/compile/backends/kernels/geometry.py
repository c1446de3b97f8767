"""How the work of a kernel is cut into blocks of threads."""

from __future__ import annotations

import functools
from typing import NamedTuple

THREADS = 256
"""Threads of a block: GROUP_NORM_THREADS and the most of an elementwise kernel."""

LINE = 128
"""Bytes that a row of a tile should have at least: a cache line."""

LAYER_NORM_THREADS = 128
MOST_TILES = 65535
"""Blocks that a grid may have in its second and third direction."""

_KEPT = 1024  # cuts that are remembered: the same sizes come at every step


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class Tiles(NamedTuple):
    """GroupNorm's channels: `width` of a part of a group, `parts` of a group, parts of a `tile`."""

    width: int
    parts: int
    tile: int


@functools.lru_cache(_KEPT)
def tiles(channels: int, groups: int, wide: int, size: int) -> Tiles | None:
    """Cut channels into tiles of at most THREADS times `wide`; None where none fits.

    `wide`: elements that a thread takes at once, of `size` bytes each. A tile consists of whole
    groups; a group that is wider than a tile is cut into parts first.
    """
    per_group = channels // groups
    for parts in _divisors(per_group):
        width = per_group // parts
        if parts > 1 and width % wide:
            continue
        fitting = [
            tile
            for tile in _divisors(groups * parts)
            if tile <= THREADS and tile * width <= THREADS * wide and tile * width % wide == 0
        ]
        if fitting:
            enough = [tile for tile in fitting if tile * width * size >= LINE]
            return Tiles(width, parts, min(enough) if enough else max(fitting))
    return None


def _divisors(number: int) -> list[int]:
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


class Slabs(NamedTuple):
    """GroupNorm's pixels: in how many slabs, and how many rows (pixels) each has but the last."""

    number: int
    rows: int


@functools.lru_cache(_KEPT)
def slabs(pixels: int, columns: int, lanes: int, multiprocessors: int, each: int) -> Slabs:
    """Cut an image into so many slabs that there are about `each` blocks for a multiprocessor.

    `columns`: tiles of all images together; `lanes`: threads beside each other. A thread gets four
    pixels at least, which it reads together.
    """
    wanted = ceil_div(each * multiprocessors, columns)
    most = ceil_div(pixels, 4 * (THREADS // lanes))
    rows = ceil_div(pixels, min(wanted, most))
    return Slabs(ceil_div(pixels, rows), rows)


class Rows(NamedTuple):
    """An elementwise kernel: its blocks (down, across), their threads, and threads in a row."""

    grid: tuple[int, int]
    threads: int
    lanes: int


@functools.lru_cache(_KEPT)
def rows(count: int, columns: int, wide: int) -> Rows:
    """Cut `count` rows of `columns` into blocks; a thread takes `wide` columns of four rows."""
    all_lanes = ceil_div(columns, wide)
    across = ceil_div(all_lanes, THREADS)
    lanes = ceil_div(all_lanes, across)
    below = THREADS // lanes
    return Rows((ceil_div(count, 4 * below), across), lanes * below, lanes)


class Tokens(NamedTuple):
    """LayerNorm: the kernel, its blocks, and the threads that share a token."""

    kernel: str
    blocks: int
    lanes: int


@functools.lru_cache(_KEPT)
def tokens(count: int, channels: int, aligned: bool) -> Tokens:
    """Choose the kernel for `count` tokens; at least 8 threads, a cache line, share one."""
    if aligned:
        for lanes in (8, 16, 32):
            if channels <= 40 * lanes:
                blocks = ceil_div(count, LAYER_NORM_THREADS // lanes)
                return Tokens("layer_norm_wide_40", blocks, lanes)
        if channels <= 48 * 32:
            return Tokens("layer_norm_wide_48", ceil_div(count, LAYER_NORM_THREADS // 32), 32)
    return Tokens("layer_norm_any", count, 32)
