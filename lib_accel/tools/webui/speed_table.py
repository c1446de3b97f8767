"""A result of `speed.measure` as a table, as a sentence and as a picture."""

from __future__ import annotations

import statistics
from typing import Any

from ..report.bars import Bar, bars
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
    on, off = (short_seconds(statistics.median(found["image_s"][state])) for state in ("on", "off"))
    size = f"{result['size']}x{result['size']}, {result['steps']} steps"
    if image.word in (SAME, UNKNOWN):
        return (
            f"{image.short.capitalize()}: {off} an image without acceleration, {on} with ({size})"
        )
    return f"{image.short}: {on} an image instead of {off} ({size}); a step is {step.short}"


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
            values, verdict = found["seconds"][part], _verdict(found["seconds"][part])
            # what is around the steps is a small difference of large times
            compared = part in ("image_s", "step_s", "steps_s", "vae_s")
            word = f"{verdict.short} ({verdict.spread})" if compared else ""
            cells = (_NAMES[part], found["loras"], *map(_time, (values["off"], values["on"])))
            lines.append(f"| {' | '.join(map(str, cells))} | {word} |")
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
        values = found["seconds"]["image_s"]
        groups.append(
            [
                Bar(
                    f"{_loras(found)}, {words}",
                    statistics.median(values[state]),
                    seconds(values[state]),
                    state,
                )
                for state, words in (("off", "without acceleration"), ("on", "accelerated"))
            ]
        )
    return bars(f"Seconds an image of {result['size']}x{result['size']}", groups, alone=True)


def passed(result: dict[str, Any]) -> bool:
    """Return whether compiled code made every image with acceleration, and none without."""
    images = 3 * result["rounds"]
    return all(
        s["marked"] == {"off": 0, "on": images if result["state"] == "ready" else 0}
        for s in result["sets"]
    )


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
    return lines
