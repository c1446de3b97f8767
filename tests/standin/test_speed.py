"""The main figure of the tab and the plot: only images that do the same work are compared."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from .host import Host, in_place


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Without a model: the timings are made up."""
    with in_place():
        host = Host("--accel-store", str(tmp_path_factory.mktemp("store")), "--accel-no-compile")
        yield host
        host.close()


def _timing(host: Host, ms: float, backend: str = "", **more: Any) -> Any:
    given = {"shape": (2, 4, 64, 64), "images": 1, "model": "a.safetensors"}
    times = tuple(ms * factor for factor in (0.98, 1.0, 1.02, 1.0))
    return host.module("lib_accel.host.clock").Timing(times, backend, **{**given, **more})


def _headline(host: Host, *timings: Any) -> str:
    clock = host.service.clock
    clock.timings.clear()
    clock.timings.extend(timings)
    return host.module("lib_accel.host.pages.speed").headline()


def _plot(host: Host) -> str:
    return host.module("lib_accel.host.pages.plot").plot(host.service.clock.timings)


def test_the_headline_says_how_much_faster_and_of_how_many_images(host: Host) -> None:
    off, on = _timing(host, 11900), _timing(host, 6900, "aoti")
    expected = "1.7x faster with aoti: 6.9 s a step instead of 11.9 s, 3 images of 512x512"
    assert _headline(host, off, on, on) == expected
    assert _headline(host, on, off, off) == expected
    slower = "1.7x slower with jit: 0.4 s a step instead of 0.23 s, 2 images of 512x512"
    assert _headline(host, _timing(host, 233), _timing(host, 400, "jit")) == slower


def test_after_a_grid_the_headline_is_about_the_backend_that_serves(host: Host) -> None:
    grid = [_timing(host, 300), _timing(host, 100, "aoti"), _timing(host, 900, "eager")]
    assert "slower with eager" in _headline(host, *grid)
    host.service.served = lambda: ({}, "aoti")
    assert "3.0x faster with aoti" in _headline(host, *grid)
    host.service.served = lambda: ({}, "jit")
    assert "slower with eager" in _headline(host, *grid), "no image was made with that yet"
    del host.service.served


def test_steps_computed_both_ways_serve_where_there_is_no_other_image(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, shape = host.module("lib_accel.host.unet.comparison").Both, (2, 4, 64, 64)
    seconds = [(2.0, 1.0), (2.1, 1.0), (2.0, 1.1)]
    both = SimpleNamespace(times=[timed(*pair, "aoti", shape) for pair in seconds])
    trial = SimpleNamespace(why_not=lambda shape: None, backend="aoti")
    current = SimpleNamespace(
        counts=SimpleNamespace(tally=both),
        witness=SimpleNamespace(trial=trial),
        engine=SimpleNamespace(status=SimpleNamespace(backend="aoti")),
    )
    monkeypatch.setattr(host.service, "current", lambda: current)
    expected = (
        "2.0x faster with aoti: 1.0 s a step instead of 2.0 s, "
        "3 steps of 512x512 computed both ways"
    )
    assert _headline(host, _timing(host, 1000, "aoti")) == expected
    other = (timed(9.0, 1.0, "jit", shape), timed(9.0, 1.0, "aoti", (4, 4, 64, 64)))
    both.times += other  # another backend, another batch
    assert _headline(host, _timing(host, 1000, "aoti")) == expected
    del both.times[-2:]
    both.times.pop()
    assert _headline(host, _timing(host, 1000, "aoti")).startswith("Not compared yet")


def test_the_backend_of_the_last_image_is_compared_with_the_webui(host: Host) -> None:
    """What is not compiled is acceleration too; it is neither another backend's nor the WebUI's."""
    off, eager, aoti = (
        _timing(host, ms, b) for ms, b in ((300, ""), (200, "eager"), (100, "aoti"))
    )
    said = "1.5x faster with eager: 0.2 s a step instead of 0.3 s, 2 images of 512x512"
    assert _headline(host, off, aoti, eager) == said
    assert _headline(host, aoti, eager, off) == said
    assert _headline(host, eager, off, aoti).startswith("3.0x faster with aoti: 0.1 s")
    assert "no image of 512x512 was made by the WebUI's own code" in _headline(host, eager, aoti)
    assert "no image of 512x512 was accelerated" in _headline(host, off, off)


def test_the_plot_names_who_computed_each_image(host: Host) -> None:
    both = (("", 300), ("eager", 200), ("eager", 220), ("aoti", 100))
    _headline(host, *(_timing(host, ms, backend) for backend, ms in both))
    drawn = _plot(host)
    bars = re.findall(r"<rect class='accel-by-(\w+)'.*?<title>.*?, (\w+)</title>", drawn)
    assert bars == [("webui", "WebUI"), ("eager", "eager"), ("eager", "eager"), ("aoti", "aoti")]
    legend = re.sub("<.*?>", "", drawn.partition("<div class='accel-legend'>")[2])
    assert "the WebUI's own code 0.3 s (1) aoti 0.1 s (1) eager 0.21 s (2)" in legend


def test_a_ratio_agrees_with_the_figures_beside_it(host: Host) -> None:
    """1.5x beside 30 s and 34 s is a sentence that nobody believes."""
    random_times, speed = random.Random(1), host.module("lib_accel.host.pages.speed")
    for _ in range(2000):
        off = 10 ** random_times.uniform(-1, 5)
        spread = random_times.choice((0.001, 0.1, 1.0))
        on = off * 2 ** random_times.gauss(0, spread)
        times = [tuple(t * (1 + i / 1e4) for i in range(4)) for t in (on, off)]
        found = speed.Speed(*times, "aoti", 2, "512x512")
        said = re.match(
            r"([\d.]+)x (faster|slower).*?: ([\d.e-]+) s .* of ([\d.e-]+) s,", found.sentence
        )
        if said is None:
            assert found.factor is None
            continue
        ratio, word, ours, theirs = said.groups()
        shown = float(theirs) / float(ours)
        assert abs(max(shown, 1 / shown) - float(ratio)) < 0.0501, found.sentence
        assert (shown > 1) == (word == "faster"), found.sentence


def test_acceleration_that_is_off_says_how_to_switch_it_on(host: Host) -> None:
    host.opts.set("accel_enable", False)
    expected = "Acceleration is off. Switch it on in Settings > Acceleration"
    assert _headline(host, _timing(host, 100)) == expected
    host.opts.set("accel_enable", True)


def test_a_difference_within_the_noise_is_none(host: Host) -> None:
    said = _headline(host, _timing(host, 103), _timing(host, 100, "aoti"))
    expected = "0.1 s a step with aoti, 0.1 s by the WebUI's own code, 2 images of 512x512"
    assert said == f"No difference within the noise: {expected}"
    noisy = [_timing(host, ms) for ms in (80, 130, 200)]
    assert "No difference" in _headline(host, *noisy, _timing(host, 100, "aoti"))


def test_images_of_another_size_batch_or_model_are_not_compared(host: Host) -> None:
    on = _timing(host, 100, "aoti")
    others = (
        {"shape": (2, 4, 128, 128)},
        {"shape": (4, 4, 64, 64), "images": 2},
        {"model": "b.safetensors"},
    )
    for other in others:
        said = _headline(host, _timing(host, 400, **other), on)
        assert said.startswith("Not compared yet: no image of 512x512 was made by the"), other
        assert _plot(host).count("<rect") == 1
    assert "64 was accelerated" in _headline(host, on, _timing(host, 400, shape=(2, 4, 8, 8)))
    batches = [_timing(host, ms, b, images=2) for ms, b in ((300, ""), (100, "aoti"))]
    assert _headline(host, *batches).endswith("4 images of 512x512 in batches of 2")


def test_images_made_beside_the_compiler_are_not_compared(host: Host) -> None:
    """It takes the processor, so they would make compiled code look faster than it is."""
    slowed = _timing(host, 900, beside_compiler=True)
    why = "Not compared yet: the images so far were made while the compiler ran"
    assert _headline(host, slowed) == why
    assert "<rect" not in _plot(host)
    off, on = _timing(host, 300), _timing(host, 200, "aoti")
    assert _headline(host, slowed, off, on, slowed).startswith("1.5x faster with aoti")
    assert _plot(host).count("<rect") == 2


def test_without_an_image_or_with_few_steps_it_says_so(host: Host) -> None:
    assert _headline(host) == "No image has been made yet."
    assert "<svg" not in _plot(host)
    clock = host.module("lib_accel.host.clock")
    short = [clock.Timing((9.0,), backend, (2, 4, 8, 8), 1, "") for backend in ("", "aoti")]
    assert _headline(host, *short) == "Not compared yet: images of 64x64 had fewer than 3 steps"


def test_one_slow_image_does_not_flatten_the_others(host: Host) -> None:
    fast = [_timing(host, 100, "aoti") for _ in range(5)]
    _headline(host, *fast, _timing(host, 5000, "aoti"), *fast)
    drawn = _plot(host)
    heights = [float(h) for h in re.findall(r"height='([\d.]+)'", drawn)]
    assert len(heights) == 11
    assert min(heights) > 0.4 * max(heights)
    assert drawn.count("class='accel-cut'") == 1
    assert "bars with a gap are cut off" in drawn
    assert "5.0 s, 512x512, a.safetensors, aoti" in drawn
    _headline(host, *fast)
    assert "accel-cut" not in _plot(host)


def test_names_of_models_are_escaped_in_the_plot(host: Host) -> None:
    _headline(host, _timing(host, 100, "aoti", model="<b>'x"))
    assert "&lt;b&gt;&#x27;x" in _plot(host)


def test_the_clock_times_both_passes_apart_and_forgets_a_batch_that_failed() -> None:
    with in_place():
        from lib_accel.host.clock import Clock

        clock = Clock(lambda: torch.device("cpu"))
        small, large = (SimpleNamespace(x=torch.zeros(2, 4, n, n)) for n in (8, 16))
        job = SimpleNamespace(batch_size=1, sd_model_name="a")
        for each in (small, large, large):
            clock.begin()
            clock.start(each)
            clock.stop(None)
        clock.start(small)
        clock.stop(None)
        clock.finish("aoti", job)
        found = [(t.size, len(t.times), t.backend, t.model) for t in clock.timings]
        assert found == [("128x128", 1, "aoti", "a"), ("64x64", 1, "aoti", "a")]


def test_the_clock_times_what_is_before_and_after_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of an image with hires fix: what is between the passes belongs to the second."""
    with in_place():
        from lib_accel.host import clock as module

        marks = iter((10.0, 11.0, 13.0, 18.0, 20.0, 24.0, 30.0))
        monkeypatch.setattr(module, "now", lambda _: next(marks))
        clock = module.Clock(lambda: torch.device("cpu"))
        assert clock.phases is None
        clock.begin()
        for n in (8, 16):
            clock.start(SimpleNamespace(x=torch.zeros(2, 4, n, n)))
            clock.stop(None)
        clock.finish("aoti", SimpleNamespace(), vae="aoti")
        found = [(t.before, t.times, t.after, t.vae) for t in clock.timings]
        assert found == [(1000, (2000,), 0, "aoti"), (5000, (2000,), 4000, "aoti")]
        assert clock.phases == {"prompt_s": 5, "steps_s": 2, "vae_s": 4}


def test_what_checking_a_step_took_is_not_time_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with in_place():
        from lib_accel.host import clock as module

        marks, checking = iter((0.0, 1.0, 3.5, 4.0, 6.0, 7.0, 9.0)), iter((5.0, 5.5, 5.5, 5.5))
        monkeypatch.setattr(module, "now", lambda _: next(marks))
        clock = module.Clock(lambda: torch.device("cpu"), lambda: next(checking))
        clock.begin()
        for _ in range(2):
            clock.start(SimpleNamespace(x=torch.zeros(2, 4, 8, 8)))
            clock.stop(None)
        clock.finish("aoti", SimpleNamespace())
        assert (clock.timings[0].times, clock.timings[0].checks) == ((2000, 2000), 500)
        assert clock.phases == {"prompt_s": 1, "steps_s": 4.5, "vae_s": 1}


def test_the_phases_of_an_image_are_shown_by_whose_code_it_was(host: Host) -> None:
    off = _timing(host, 1000, before=100, after=9000)
    on = _timing(host, 500, "aoti", before=100, after=4000, vae="aoti")
    _headline(host, off, on)
    rows = re.findall(r"<tr><th scope='row'>.*?</tr>", _plot(host))
    cells = [re.sub("<[^>]+>", " ", row).split() for row in rows]
    assert cells == [
        ["the", "WebUI's", "own", "code", "0.1", "s", "4.0", "s", "9.0", "s"],
        ["accelerated", "0.1", "s", "2.0", "s", "4.0", "s"],
    ]
    assert "Checks" not in _plot(host)
    _headline(host, _timing(host, 500, "aoti", after=9000, checks=700))
    assert "accelerated, but for the VAE" in _plot(host)
    assert ">0.7 s<" in _plot(host)
    _headline(host, _timing(host, 500))
    assert "accel_phases" not in _plot(host)
