"""What the extension brings in a running WebUI: the same images off and on, in turn.

An image of many steps and one of few tell the time of a step from the time around the steps
(prompt, VAE, the WebUI itself).
"""

from __future__ import annotations

import contextlib
import datetime
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import AccelError
from .client import Client, Refused, WebUIFailed
from .pictures import Pictures, make

OPTION = "accel_enable"
MANY_LORAS = 10
_LORAS_NAMED = 20
"""How many are listed where one is not there."""
STATES = {"off": False, "on": True}
PHASES = ("prompt_s", "steps_s", "vae_s")
"""Seconds of an image before its steps, in them and after them, as the extension has timed them."""
PARTS = ("image_s", "step_s", "around_s", "change_s", *PHASES)
"""Seconds of an image, of a step in it, around its steps, and more in the first after a change."""


@dataclass(frozen=True)
class Plan:
    """What to measure: `rounds` images of `size` pixels and `steps` steps, each off and on."""

    steps: int = 20
    size: int = 512
    loras: Sequence[tuple[str, float]] = ()  # names and strengths
    rounds: int = 4
    prompt: str = "a photo of a cat"
    sampler: str = "Euler"

    @property
    def few(self) -> int:
        """Steps of the shorter image."""
        return max(1, self.steps // 4)

    @property
    def sets(self) -> dict[int, str]:
        """Prompt tags by number of LoRAs. The ten have the strength of those that were named."""
        if not self.loras:
            return {0: ""}
        share = min(1.0, len(self.loras) / MANY_LORAS)
        ten = [self.loras[i % len(self.loras)] for i in range(MANY_LORAS)]
        tags = "".join(_tag(name, strength * share) for name, strength in ten)
        return {0: "", 1: _tag(*self.loras[0]), MANY_LORAS: tags}

    @property
    def images(self) -> int:
        """How many images are made."""
        return 2 + 3 * 2 * len(self.sets) * self.rounds


def _tag(name: str, strength: float) -> str:
    return f" <lora:{name}:{strength:g}>"


@dataclass
class _Set:
    """Measurements with one set of LoRAs."""

    seconds: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {part: {"off": [], "on": []} for part in PARTS}
    )
    marked: dict[str, int] = field(default_factory=lambda: {"off": 0, "on": 0})
    decibels: float = 99.0


def measure(
    client: Client,
    plan: Plan,
    say: Callable[[str], object] = lambda text: None,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Make the images; return the result, ready for JSON. `tick` is called after each image.

    Leaves the switch as it was found, also when interrupted. Raises WebUIFailed, and AccelError
    where acceleration cannot serve at all or a LoRA is not there.
    """
    _check_loras(client, plan)
    sets = {count: _Set() for count in plan.sets}
    with _switch_restored(client):
        first: dict[str, float] = {}
        status: dict[str, Any] = {}
        served: dict[str, Any] = {}  # the status after the last images with acceleration
        infotext = ""
        for state, enabled in STATES.items():
            _switch(client, enabled)
            if enabled:
                served = status = _wait_until_ready(client, say)
            made = _make(client, plan, plan.steps)
            first[state], infotext = made.seconds, made.infotexts[0]
            tick()
        for turn in range(plan.rounds):
            last: dict[tuple[str, int], Pictures] = {}
            for state in sorted(STATES, reverse=turn % 2 == 0):  # neither is always the first
                _switch(client, STATES[state])
                if STATES[state]:
                    _wait_until_ready(client, say)
                for count, tags in plan.sets.items():
                    last[state, count] = _measure_one(client, plan, tags, sets[count], state, tick)
                if STATES[state]:
                    served = client.get("/accel/v1/status")
            for count, found in sets.items():
                apart = last["on", count].decibels(last["off", count])
                found.decibels = min(found.decibels, apart)
    measured = [{"loras": n, "tags": plan.sets[n], **vars(found)} for n, found in sets.items()]
    return {
        **_conditions(client, plan, infotext),
        **{key: served[key] for key in ("backend", "architecture", "dtype", "device", "reason")},
        "state": status["state"],
        "slower": [row for row in served.get("speeds", ()) if row["slower"]],
        "first_image_s": first,
        "sets": measured,
    }


def _check_loras(client: Client, plan: Plan) -> None:
    """Raise AccelError for a LoRA that is not there: the WebUI leaves it out without a word."""
    if not plan.loras:
        return
    try:
        known = client.get("/sdapi/v1/loras")
    except Refused as e:
        if e.code != 404:
            raise
        raise AccelError("this WebUI has no LoRAs: its extension Lora is switched off") from None
    names = {lora[key] for lora in known for key in ("name", "alias") if lora.get(key)}
    for name, _ in plan.loras:
        if name not in names:
            there = ", ".join(sorted(lora["name"] for lora in known)[:_LORAS_NAMED]) or "none"
            raise AccelError(f"the WebUI has no LoRA {name!r}. It has: {there}")


def _measure_one(
    client: Client, plan: Plan, tags: str, found: _Set, state: str, tick: Callable[[], object]
) -> Pictures:
    """Make three images with these LoRAs, and add what they took; return that of many steps."""
    made = []
    phases: dict[str, float] = {}
    for steps in (plan.few, plan.steps, plan.few):
        made.append(_make(client, plan, steps, tags))
        if steps == plan.steps:
            phases = client.get("/accel/v1/status")["phases"] or {}
        tick()
    changed, many, few = made
    step = (many.seconds - few.seconds) / max(1, plan.steps - plan.few)
    values = (many.seconds, step, many.seconds - plan.steps * step, changed.seconds - few.seconds)
    timed = (phases.get(name, 0.0) for name in PHASES)
    for part, value in zip(PARTS, (*values, *timed), strict=True):
        found.seconds[part][state].append(value)
    found.marked[state] += sum(p.served for p in made)
    return many


def _make(client: Client, plan: Plan, steps: int, tags: str = "") -> Pictures:
    payload = {
        "prompt": plan.prompt + tags,
        "steps": steps,
        "width": plan.size,
        "height": plan.size,
        "seed": 1,
        "sampler_name": plan.sampler,
        "cfg_scale": 7,
    }
    made = make(client, payload)
    if not made.pixels:
        raise WebUIFailed("the WebUI made no image; its console says why")
    return made


def _switch(client: Client, enabled: bool) -> None:
    client.post("/sdapi/v1/options", {OPTION: enabled})


@contextlib.contextmanager
def _switch_restored(client: Client) -> Iterator[None]:
    """Set the switch back at the end, whatever happens; another Ctrl-C cannot prevent that."""
    before = client.get("/sdapi/v1/options").get(OPTION, True)
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(WebUIFailed):  # the image that nobody waits for
            client.post("/sdapi/v1/interrupt")
        raise
    finally:
        with _uninterrupted():
            _switch(client, before)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no signals come here
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _wait_until_ready(client: Client, say: Callable[[str], object]) -> dict[str, Any]:
    """Return the status once nothing is compiled or loaded. Raises AccelError for a fallback."""
    words = "the WebUI is compiling for this model; waiting until it has finished ..."
    status = client.settled(lambda: say(words))
    if status["state"] in ("off", "fallback"):
        reason = status["reason"] or "the WebUI was started with --accel-disable"
        raise AccelError(f"acceleration does not serve in this WebUI: {reason}")
    if status["state"] != "ready":
        say(f"no compiled code serves: {status['reason'] or status['state']}")
    return status


def _conditions(client: Client, plan: Plan, infotext: str) -> dict[str, Any]:
    """Return what was asked for, and where: versions as the WebUI tells them."""
    options = client.get("/sdapi/v1/options")
    version = re.search(r"Version: ([^,\n]+)", infotext)
    return {
        "date": datetime.date.today().isoformat(),
        "webui": version[1] if version else None,
        "checkpoint": options.get("sd_model_checkpoint"),
        "attention": options.get("cross_attention_optimization"),
        **_machine(client),
        "steps": plan.steps,
        "few_steps": plan.few,
        "size": plan.size,
        "rounds": plan.rounds,
        "sampler": plan.sampler,
    }


def _machine(client: Client) -> dict[str, Any]:
    """Return torch's version, the cores and the memory, where the WebUI tells them."""
    try:
        info = client.get("/internal/sysinfo")
    except WebUIFailed:
        info = {}

    def told(group: str, name: str) -> Any:
        values = info.get(group)
        return values.get(name) if isinstance(values, dict) else None

    return {
        "torch": told("Torch env info", "torch_version"),
        "cores": told("CPU", "count logical"),
        "memory": told("RAM", "total"),
        "platform": info.get("Platform"),
    }
