"""A result of `speed.measure` as a table, as a sentence and as a picture."""

from __future__ import annotations

from typing import Any

from ..report.bars import bars, off_and_on
from ..report.verdict import SAME, UNKNOWN, Verdict, seconds, short_seconds
from ..report.words import without_marks
from .speed import PARTS

_NAMES = {
    "image_s": "an image",
    "step_s": "a step",
    "around_s": "around the steps",
    "change_s": "more in the first image after a change",
    "prompt_s": "of it: prompt",
    "steps_s": "of it: all steps",
    "vae_s": "of it: VAE",
}


def headline(result: dict[str, Any]) -> str:
    """Return the main figure in one sentence."""
    found = result["sets"][0]["seconds"]
    step, image = (_verdict(found[part]) for part in ("step_s", "image_s"))
    off, on, short = image.told()
    size = f"{result['size']}x{result['size']}, {result['steps']} steps"
    if image.word in (SAME, UNKNOWN):
        return f"{short.capitalize()}: {off} an image without acceleration, {on} with ({size})"
    return f"{short}: {on} an image instead of {off} ({size}); a step is {step.short}"


def table(result: dict[str, Any]) -> str:
    """Return what was measured as Markdown, with the conditions and the checks."""
    lines = [
        headline(result),
        "",
        *_conditions(result),
        "",
        "| seconds | LoRAs | without | with | with it is |",
        "| --- | --- | --- | --- | --- |",
    ]
    for part in PARTS:
        for found in result["sets"]:
            cells = (_NAMES[part], str(found["loras"]), *_cells(part, found["seconds"][part]))
            lines.append(f"| {' | '.join(cells)} |")
    first = result["first_image_s"]
    lines += [
        f"| the first image | 0 | {short_seconds(first['off'])} | {short_seconds(first['on'])} | |",
        "",
        *_checks(result),
    ]
    return "\n".join(lines)


def picture(result: dict[str, Any]) -> str:
    """Return an SVG file: seconds an image without and with acceleration, by LoRAs."""
    groups = []
    for found in result["sets"]:
        names = [f"{_loras(found)}, {how}" for how in ("without acceleration", "accelerated")]
        groups.append(off_and_on(names, _verdict(found["seconds"]["image_s"])))
    return bars(f"Seconds an image of {result['size']}x{result['size']}", groups, alone=True)


def passed(result: dict[str, Any]) -> bool:
    """Return whether a backend made every image with acceleration, and none without.

    Sizes that were measured to be slower with it are left to the WebUI's own code.
    """
    images = 3 * result["rounds"]
    marked = [found["marked"] for found in result["sets"]]
    return all(m["off"] == 0 and (m["on"] == images or result["slower"]) for m in marked)


def _cells(part: str, values: dict[str, list[float]]) -> tuple[str, str, str]:
    """Return the times without and with acceleration, and the word for them."""
    both, verdict = (values["off"], values["on"]), _verdict(values)
    # what is around the steps is a small difference of large times
    if part not in ("image_s", "step_s", "steps_s", "vae_s") or min(map(min, both)) <= 0:
        off, on = map(_time, both)
        return off, on, ""
    off, on, short = verdict.told(ranges=True)
    return off, on, f"{short} ({verdict.spread})"


def _time(values: list[float]) -> str:
    """Return the median and the range; a difference of times that is not above 0 says nothing."""
    return seconds(values) if min(values) > 0 else "within the noise"


def _loras(found: dict[str, Any]) -> str:
    return f"{found['loras']} LoRA{'' if found['loras'] == 1 else 's'}"


def _verdict(values: dict[str, list[float]]) -> Verdict:
    return Verdict.of(values["off"], values["on"])


def _conditions(r: dict[str, Any]) -> list[str]:
    device = without_marks(r["device"] or "")
    cores = f"{r['cores']} cores" if r["cores"] else ""
    where = (device, cores, r["memory"], f"torch {r['torch']}" if r["torch"] else "", r["date"])
    webui = f"WebUI {r['webui']}" if r["webui"] else "WebUI"
    return [
        f"{webui}, {r['architecture']} ({r['checkpoint']}), {r['dtype']}, {r['size']}x{r['size']}, "
        f"{r['steps']} and {r['few_steps']} steps of {r['sampler']}, each {r['rounds']} times off "
        f"and on in turn; backend {r['backend']}; the WebUI's attention: {r['attention']}.",
        f"{', '.join(filter(None, where))}.",
    ]


def _checks(r: dict[str, Any]) -> list[str]:
    images = 3 * r["rounds"]
    lines = []
    for found in r["sets"]:
        on, off = found["marked"]["on"], found["marked"]["off"]
        lines.append(
            f"{_loras(found)}: off and on agree to {found['decibels']:.1f} dB PSNR or better; "
            f"`Accel:` is in {on} of {images} infotexts with acceleration, in {off} without."
        )
    return lines + [
        f"The WebUI's own code computes sizes like {row['size']}: {row['backend']} took "
        f"{row['ours_s']:.3g} s a step there instead of {row['theirs_s']:.3g} s."
        for row in r["slower"]
    ]
