"""A result of the demonstration in sentences."""

from __future__ import annotations

import re
from typing import Any

from ...config import MIB
from .verdict import FASTER, SAME, UNKNOWN, Verdict, short_seconds


def verdict(r: dict[str, Any], lora: bool = False) -> Verdict:
    """Return what the steps say, with or without a LoRA."""
    of = r["seconds_of_steps"]
    return Verdict.of(*(of[f"{state}, LoRA" if lora else state] for state in ("off", "on")))


def headline(r: dict[str, Any]) -> str:
    """Return the measured speed, be it more or less, and whether the pictures agree."""
    same = "the same picture" if r["error_ok"] else "A DIFFERENT PICTURE"
    found, unit = verdict(r), " it/s" if r["gpu"] else " a step"
    off, on, short = found.told(number=_rate if r["gpu"] else None)
    if found.word in (SAME, UNKNOWN):
        return f"{short.capitalize()}: {off}{unit} without acceleration, {on}{unit} with; {same}"
    return f"{short.capitalize()}: {on}{unit} instead of {off}{unit}, {same}"


def _rate(seconds: float, more: int) -> str:
    """Return what users of a GPU call the speed: steps a second, two digits or one decimal."""
    rate = 1 / seconds
    return f"{rate:.{1 + more}f}" if rate >= 1 else f"{rate:.{2 + more}g}"


def without_marks(device: str) -> str:
    """Return the name of a card or processor without trade marks."""
    return re.sub(r"\((?:R|TM)\)", "", device)


def machine(r: dict[str, Any]) -> str:
    """Return what was measured, and where."""
    device = without_marks(r["device"])
    width = {320: " at its real size", 160: " at half its width"}.get(r["channels"], "")
    weights = f"{r['architecture']}{width}, random weights"
    parts = (
        weights if r["random_weights"] else f"{r['architecture']} ({r['checkpoint']})",
        f"{r['size']}x{r['size']}, {r['steps']} steps",
        r["dtype"],
        device if r["gpu"] else f"{device}, {r['threads']} threads",
        f"torch {r['torch']}",
        r["date"],
    )
    return " · ".join(parts)


def facts(r: dict[str, Any]) -> list[str]:
    """Return what was seen, a sentence each: speed first, then what cannot be noise."""
    plain, with_lora = verdict(r), verdict(r, lora=True)
    off, on, short = plain.told(ranges=True)
    lora_off, lora_on, lora_short = with_lora.told(ranges=True)
    return [
        machine(r),
        f"Speed: {short} ({plain.spread}). A step takes {on} with acceleration and {off} as the "
        f"WebUI does it today, with its default attention ({r['stock_attention']}).",
        *_why(r, plain),
        f"With a LoRA: {lora_short} ({with_lora.spread}). A step takes "
        f"{lora_on} instead of {lora_off}; merging the LoRA took "
        f"{short_seconds(r['lora_merge_seconds'])}, once.",
        _pixels(r),
        f"Compiled for the LoRA: {r['compiles_for_lora'] or 'nothing'}.",
        "The LoRA removed: the picture is "
        + ("bit-identical to the one before." if r["same_after_lora"] else "DIFFERENT."),
        _compiled(r),
    ]


def _why(r: dict[str, Any], plain: Verdict) -> list[str]:
    if plain.word in (FASTER, UNKNOWN):
        return []
    if r["compile_unfinished"]:
        return ["Why: no compiled code serves yet. Run the command again to go on compiling."]
    if r["state"] != "ready":
        return [f"Why: no compiled code serves here: {r['reason'] or r['state']}."]
    least = short_seconds(r["least_seconds"])
    share = r["least_seconds"] / plain.typical[0]
    if r["products_explain"]:
        return [
            f"Why: the products of matrices alone take {least} of a step here ({100 * share:.0f} %)"
            ", in both cases from the same library; there is little left to gain."
        ]
    return [
        f"Why: at {r['size']}x{r['size']} torch's own layers are as fast as compiled ones here; "
        f"products of matrices take {100 * share:.0f} % of a step in both cases."
    ]


def _pixels(r: dict[str, Any]) -> str:
    most = r["largest_pixel_difference"]
    if most == 0:
        return "Pixels that differ, off and on: none."
    share = 100 * r["share_of_differing_pixels"]
    return f"Pixels that differ, off and on: {share:.2g} %, by {most} of 255 at most."


def _compiled(r: dict[str, Any]) -> str:
    units, kept = len(r["units"]), r["artifact"]
    took = 0 if r["compile_seconds"] is None else round(r["compile_seconds"])
    if r["compile_unfinished"]:
        return (
            f"Compiled: {r['compiled_units']} of {units} units in {took} s. Then the time was "
            "over, so the images were made without compiled code. What is finished is kept: run "
            "the command again."
        )
    if r["state"] != "ready":
        return f"Compiled: nothing; {r['backend']} serves."
    if r["compile_seconds"] is None or not r["compiled_units"]:
        return f"Compiled: nothing; all {units} units were in the store."
    size = f" ({kept['bytes'] / MIB:.1f} MiB)" if kept else ""
    return (
        f"Compiled: {r['compiled_units']} units in {took} s{size}, once for "
        "every checkpoint, LoRA, size and prompt of this architecture."
    )
