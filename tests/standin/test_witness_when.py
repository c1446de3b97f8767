"""Which steps are computed both ways: the first after a change, and one by chance."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ..tiny import inputs
from .host import MIDDLE_QUERY, Host, factors
from .test_witness import change, host, seen, witnessed

__all__ = ["host", "seen"]


def _job(host: Host, *args: Any, controls: Any = ()) -> Any:
    """Return a job as the WebUI's scripts get it, with one script and these arguments."""
    script = SimpleNamespace(filename="other.py", args_from=1, args_to=1 + len(args))
    script.controls = list(controls) or None
    runner = SimpleNamespace(alwayson_scripts=[script], selectable_scripts=[script])
    return SimpleNamespace(scripts=runner, script_args=(0, *args))


def _more(host: Host, *calls: Any) -> int:
    """Return how many of some calls of the UNet are witnessed."""
    before = witnessed(host)
    for given in calls:
        host.call(given)
    return witnessed(host) - before


def _image(host: Host, job: Any) -> int:
    """Return how many of the three steps of a job are witnessed."""
    host.service.before_images(job)
    return _more(host, None, None, None)


def test_a_step_is_witnessed_after_each_change_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _image(host, _job(host, True)) == 1
    assert _image(host, _job(host, True)) == 0
    host.opts.set("upcast_attn", True)
    assert _image(host, _job(host, True)) == 1
    host.service.current().inspector.version += 1
    assert _image(host, _job(host, True)) == 1
    host.module("modules.script_callbacks").model_loaded_callback(host.model)
    assert _image(host, _job(host, True)) == 1
    host.load(seed=1)
    assert _image(host, _job(host, True)) == 1


def test_booleans_and_choices_of_scripts_count_and_texts_and_numbers_do_not(host: Host) -> None:
    radio, text = SimpleNamespace(choices=[("a", "a")]), SimpleNamespace(choices=None)
    unit = SimpleNamespace(enabled=True, module="canny", weight=1.0, image=torch.ones(2))
    given = {"args": [False, "a", "a text", 0.5, unit, {"on": True}]}
    controls = [text, radio, text, text, text, text]

    def made(place: int | None = None, value: Any = None) -> int:
        if place is not None:
            given["args"][place] = value
        return _image(host, _job(host, *given["args"], controls=controls))

    assert made() == 1
    assert made(2, "another text") == made(3, 0.7) == made(2, "") == 0
    assert made(0, True) == made(0, False) == made(1, "b") == 1
    other = copy.copy(unit)
    other.weight, other.image = 0.3, torch.zeros(3)
    assert made(4, other) == 0
    other = copy.copy(unit)
    other.module = "depth"
    assert made(4, other) == 1
    assert made(5, {"on": False}) == 1


def test_a_script_that_is_chosen_counts(host: Host) -> None:
    assert _image(host, _job(host)) == 1
    chosen = _job(host)
    chosen.script_args = (1,)
    assert _image(host, chosen) == 1
    assert _image(host, chosen) == 0


def test_types_of_networks_count_and_strengths_do_not(host: Host) -> None:
    lora = host.network("lora", {MIDDLE_QUERY: factors()})
    full = host.network("full", {MIDDLE_QUERY: {"diff": torch.randn(64, 64) * 0.1}})
    assert _more(host, None) == 1
    host.want(lora)
    assert _more(host, None, None) == 1
    lora.unet_multiplier = 0.5
    assert _more(host, None) == 0
    host.want(lora, full)
    assert _more(host, None, None) == 1


def test_a_size_class_counts_once(host: Host) -> None:
    """Tiles of two sizes alternate within a step."""
    large, wide = inputs(height=64, width=64), inputs(height=16, width=17)
    assert _more(host, None, large, wide, None, large, wide) == 2


def test_what_changes_at_every_step_does_not_double_the_time(host: Host) -> None:
    def steps(n: int) -> int:
        host.service.before_images()
        before = witnessed(host)
        for _ in range(n):
            host.service.current().inspector.version += 1
            host.call()
        return witnessed(host) - before

    assert steps(9) == 4
    assert steps(3) == 3


def test_one_step_of_so_many_is_witnessed_by_chance(host: Host) -> None:
    """By a generator of its own: those of pictures are not drawn from."""
    host.call()
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    host.opts.set("accel_witness_steps", 10)
    places = set()
    for _ in range(12):
        each = [_more(host, None) for _ in range(10)]
        assert sum(each) == 1, each
        places.add(each.index(1))
    assert len(places) > 2
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_a_rate_that_means_nothing_is_named_once(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.opts.data["accel_witness_steps"] = "often"
    host.call()
    host.call()
    assert host.opts.data["accel_witness_steps"] == 400
    assert capsys.readouterr().out.count("expected 0 to 4000 steps") == 1


@pytest.mark.parametrize("cause", ["fingerprint", "script", "option", "weights"])
def test_after_a_change_the_layer_is_trusted_again(host: Host, cause: str) -> None:
    host.service.before_images(_job(host, True))
    undo = change(host, MIDDLE_QUERY)
    host.call()
    host.call()
    assert host.service.current().witness.distrusted == {
        "middle_block.1": "compiled code and the WebUI differ there"
    }
    undo()
    job = _job(host, cause != "script")
    if cause == "fingerprint":
        host.service.current().inspector.version += 1
    if cause == "option":
        host.opts.set("upcast_attn", True)
    if cause == "weights":
        host.module("modules.script_callbacks").model_loaded_callback(host.model)
    host.service.before_images(job)
    with host.watched() as unaccelerated:
        host.call()
        host.call()
        host.networks.computed.clear()
        host.call()
        assert unaccelerated(host.unet) == set()


def test_a_size_or_a_network_does_not_make_a_layer_trusted_again(host: Host) -> None:
    host.service.before_images()
    change(host, MIDDLE_QUERY)
    host.call()
    host.call()
    host.want(host.network("lora", {MIDDLE_QUERY: factors()}))
    for given in (None, inputs(height=64)):
        host.service.before_images()
        with host.watched() as unaccelerated:
            host.call(given)
            host.networks.computed.clear()
            host.call(given)
            assert unaccelerated(host.unet) == {"middle_block.1"}


def test_the_speed_up_is_measured_where_both_ways_had_run_at_that_size(host: Host) -> None:
    host.opts.set("accel_witness_steps", 1)
    host.call()
    assert host.status()["speedup"] is None
    host.call()
    host.call(inputs(height=32))
    assert host.status()["speedup"] > 0
    host.service.current().inspector.version += 1  # other code runs for the first time
    host.call()
    assert len(host.service.current().counts.tally.times) == 1
