"""The settings: sentences on the page, words in the file, and every stored value understood."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_accel.config import Config

from .host import Host, in_place

MIB = 1024**2
DEFAULTS = {
    "accel_enable": True,
    "accel_backend": "auto",
    "accel_while_compiling": "continue",
    "accel_store_mib": 2048,
    "accel_graphs_mib": 1024,
    "accel_witness_steps": 400,
    "accel_lora_base": "auto",
}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Without compiled code, and without a compiler."""
    with in_place():
        host = Host("--accel-store", str(tmp_path), "--accel-no-compile")
        yield host
        host.close()


def _config(host: Host) -> Config:
    return host.module("lib_accel.host.webui").config()


def _component(host: Host, name: str) -> Any:
    return host.module("modules.ui_settings").create_setting_component(name)


def _stored(host: Host) -> dict[str, Any]:
    return {name: host.opts.data[name] for name in DEFAULTS if name in host.opts.data}


def test_defaults_make_the_default_config(host: Host) -> None:
    flags = host.module("modules.shared").cmd_opts
    flags.accel_store, flags.accel_no_compile = None, False
    assert _config(host) == Config()
    assert {name: getattr(host.opts, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("accel_while_compiling", ["continue", "wait"]),
        ("accel_lora_base", ["auto", "host", "pinned", "gpu"]),
    ],
)
def test_the_page_shows_sentences_and_stores_words(host: Host, name: str, words: list[str]) -> None:
    radio = _component(host, name)
    assert [radio.preprocess(value) for _, value in radio.choices] == words
    assert radio.value == DEFAULTS[name]
    shown = [label for label, _ in radio.choices]
    assert len(set(shown)) == len(words)
    assert all(" " in label for label in shown)


@pytest.mark.parametrize(
    ("name", "sentence", "word"),
    [
        ("accel_lora_base", "ordinary memory, as the WebUI does", "host"),
        ("accel_lora_base", "pinned memory", "pinned"),
        ("accel_lora_base", "video memory", "gpu"),
        (
            "accel_lora_base",
            "video memory while 8 GiB of it are free, else pinned memory",
            "auto",
        ),
        ("accel_while_compiling", "wait for the compiler", "wait"),
        ("accel_while_compiling", "make images without acceleration", "continue"),
    ],
)
def test_a_sentence_that_an_earlier_version_stored_is_rewritten(
    host: Host, capsys: pytest.CaptureFixture[str], name: str, sentence: str, word: str
) -> None:
    host.opts.data[name] = sentence
    host.reload_ui()
    assert host.opts.data[name] == word
    assert _component(host, name).value == word
    if name == "accel_lora_base":
        assert _config(host).lora_base == word
    else:
        assert host.status()["images_wait"] == (word == "wait")
    assert capsys.readouterr().out == ""


ODD = pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("accel_lora_base", "disk", "expected one of auto, host, pinned, gpu"),
        ("accel_backend", "cuda", "expected one of auto, tensorrt, aoti, jit, kernels, eager"),
        ("accel_backend", ["eager"], "expected one of auto, tensorrt, aoti, jit, kernels, eager"),
        ("accel_while_compiling", None, "expected one of continue, wait"),
        ("accel_enable", "maybe", "expected true or false"),
        ("accel_enable", [], "expected true or false"),
        ("accel_enable", ["false"], "expected true or false"),
        ("accel_enable", None, "expected true or false"),
        ("accel_enable", math.nan, "expected true or false"),
        ("accel_enable", 2, "expected true or false"),
        ("accel_enable", {"value": True}, "expected true or false"),
        ("accel_backend", None, "expected one of auto, tensorrt, aoti, jit, kernels, eager"),
        ("accel_backend", True, "expected one of auto, tensorrt, aoti, jit, kernels, eager"),
        ("accel_lora_base", {"gpu": 1}, "expected one of auto, host, pinned, gpu"),
        ("accel_while_compiling", 10**400, "expected one of continue, wait"),
        ("accel_store_mib", 0, "expected 64 to 16384 MiB"),
        ("accel_store_mib", -64, "expected 64 to 16384 MiB"),
        ("accel_store_mib", 0.5, "expected 64 to 16384 MiB"),
        ("accel_store_mib", 100.5, "expected 64 to 16384 MiB, a whole number"),
        ("accel_graphs_mib", 0.5, "expected 0 to 8192 MiB, a whole number"),
        ("accel_graphs_mib", "0.25", "expected 0 to 8192 MiB, a whole number"),
        ("accel_witness_steps", 0.5, "expected 0 to 4000 steps, a whole number"),
        ("accel_store_mib", 1e300, "expected 64 to 16384 MiB"),
        ("accel_store_mib", 10**400, "expected 64 to 16384 MiB"),
        ("accel_store_mib", "1e999", "expected 64 to 16384 MiB"),
        ("accel_store_mib", 99999999, "expected 64 to 16384 MiB"),
        ("accel_witness_steps", 4001, "expected 0 to 4000 steps"),
        ("accel_store_mib", None, "expected 64 to 16384 MiB"),
        ("accel_graphs_mib", -5, "expected 0 to 8192 MiB"),
        ("accel_store_mib", math.nan, "expected 64 to 16384 MiB"),
        ("accel_graphs_mib", math.inf, "expected 0 to 8192 MiB"),
        ("accel_graphs_mib", [1024], "expected 0 to 8192 MiB"),
        ("accel_graphs_mib", True, "expected 0 to 8192 MiB"),
        ("accel_store_mib", "much", "expected 64 to 16384 MiB"),
    ],
)
OTHERS = {
    "accel_enable": False,
    "accel_backend": "eager",
    "accel_while_compiling": "wait",
    "accel_store_mib": 128,
    "accel_graphs_mib": 64,
    "accel_witness_steps": 100,
    "accel_lora_base": "host",
}
LIMITS = {"accel_store_mib": (64, 16384), "accel_graphs_mib": (0, 8192)}
LIMITS["accel_witness_steps"] = (0, 4000)


def _instead(name: str, value: Any, otherwise: Any) -> Any:
    """Return what is used in place of a value that means nothing."""
    if name not in LIMITS or value is True or not isinstance(value, (int, float)):
        return otherwise
    least, most = LIMITS[name]
    if not -1e308 < value < 1e308 or least <= value <= most:  # in range, and no whole number
        return otherwise
    return least if value < least else most


@ODD
@pytest.mark.parametrize("before", [DEFAULTS, OTHERS])
def test_a_change_that_means_nothing_is_refused_where_it_was_typed(
    host: Host,
    capsys: pytest.CaptureFixture[str],
    before: dict[str, Any],
    name: str,
    value: Any,
    expected: str,
) -> None:
    """What was set stays, or the nearest limit is set: null never switches acceleration on.

    One sentence names it in the page that has asked and in the console, and it is no error.
    """
    host.load()
    host.opts.set(name, before[name])
    capsys.readouterr()
    host.pages.warned.clear()
    host.opts.set(name, value)
    assert host.image().made
    assert host.opts.data[name] == _instead(name, value, before[name])
    (sentence,) = host.pages.warned
    out = capsys.readouterr().out
    assert out.count(name) == out.count(sentence) == 1, out
    assert "Error" not in out
    assert sentence.startswith(f"{host.opts.data_labels[name].label} ({name}) is ")
    assert expected in sentence
    assert sentence.endswith(f". {host.opts.data[name]!r} is used instead.")


@ODD
def test_a_stored_value_that_means_nothing_is_named_once_and_replaced(
    host: Host, capsys: pytest.CaptureFixture[str], name: str, value: Any, expected: str
) -> None:
    """It was in the file, or an image's `override_settings` brought it, which tell nobody."""
    host.load()
    host.opts.data[name] = value
    assert host.image().made
    host.status()
    _config(host)
    host.module("lib_accel.host.webui").option(name)
    instead = host.opts.data[name]
    assert instead == _instead(name, value, DEFAULTS[name])
    lines = [x for x in capsys.readouterr().out.splitlines() if name in x]
    assert len(lines) == 1, lines
    assert expected in lines[0]
    assert repr(value)[:4] in lines[0]
    assert repr(instead) in lines[0]


def test_a_change_in_the_middle_of_an_image_reads_as_what_it_means(host: Host) -> None:
    """The API answers at once what is stored; the change itself waits for the image's end."""
    host.load()
    with host.module("modules.call_queue").queue_lock:
        host.opts.set("accel_enable", "false")
        assert host.opts.data["accel_enable"] is False
        host.opts.set("accel_enable", "none")
        assert host.opts.data["accel_enable"] is False
    assert host.status()["state"] == "off"


def test_an_unknown_stored_value_is_replaced_before_the_page_is_built(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.opts.data |= {"accel_lora_base": "disk", "accel_backend": 7}
    host.reload_ui()
    assert _component(host, "accel_lora_base").value == "auto"
    assert _component(host, "accel_backend").value == "auto"
    assert len(capsys.readouterr().out.splitlines()) == 2
    host.reload_ui()
    host.load()
    assert "accel_" not in capsys.readouterr().out


@pytest.mark.parametrize("value", ["false", "False", " off ", "no", 0, "0"])
def test_off_by_another_type_is_off(
    host: Host, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    """The API stores what it is given: `bool("false")` would switch acceleration on."""
    unet = host.load()
    host.opts.set("accel_enable", value)
    assert host.status()["state"] == "off"
    assert "forward" not in vars(unet)
    assert host.opts.data["accel_enable"] is False
    host.opts.set("accel_enable", "true")
    assert host.status()["state"] == "eager"
    assert host.opts.data["accel_enable"] is True
    assert "accel_enable" not in capsys.readouterr().out


def test_numbers_and_words_of_another_form_mean_what_they_say(host: Host) -> None:
    host.opts.data |= {
        "accel_store_mib": "512",
        "accel_graphs_mib": 64.0,
        "accel_backend": " Eager",
        "accel_lora_base": "GPU",
    }
    config = _config(host)
    assert (config.store_bytes, config.graph_bytes) == (512 * MIB, 64 * MIB)
    assert (config.backend, config.lora_base) == ("eager", "gpu")
    assert _stored(host)["accel_store_mib"] == 512
    assert type(_stored(host)["accel_graphs_mib"]) is int


def test_an_unknown_backend_on_the_command_line_is_named_once(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.module("modules.shared").cmd_opts.accel_backend = "cuda"
    host.opts.set("accel_backend", "eager")
    host.load()
    assert host.status()["backend"] == "eager"
    host.status()
    lines = [x for x in capsys.readouterr().out.splitlines() if "--accel-backend" in x]
    assert len(lines) == 1, lines
    assert "'cuda'; expected one of auto, tensorrt, aoti, jit, kernels, eager" in lines[0]
