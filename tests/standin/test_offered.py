"""What the settings page offers works here, and the folder that was named is tried at the start."""

from __future__ import annotations

import contextlib
import html
from pathlib import Path

import pytest

from .host import Host, in_place
from .test_settings import LIMITS, _component, host

__all__ = ["host"]


def _labels(host: Host, name: str) -> dict[str, str]:
    return {word: label for label, word in _component(host, name).choices}


def test_a_backend_that_cannot_serve_is_shown_with_its_reason_and_not_as_a_choice(
    packaging: None, host: Host
) -> None:
    """Here nothing is stored and nothing may be compiled."""
    assert _labels(host, "accel_backend") == {
        "auto": "auto: the best that works here",
        "eager": "eager: not compiled",
    }
    shown = host.opts.data_labels["accel_backend"].comment_after
    assert ">jit: compiling is switched off</span>" in shown
    assert "aoti: 17 of 17 compiled units are missing and compiling is switched off" in shown


def test_a_backend_that_is_set_stays_a_choice(host: Host) -> None:
    host.opts.data["accel_backend"] = "jit"
    host.reload_ui()
    assert list(_labels(host, "accel_backend")) == ["auto", "jit", "eager"]
    assert _component(host, "accel_backend").value == "jit"


def test_where_everything_works_everything_is_offered(packaging: None, tmp_path: Path) -> None:
    with in_place(), contextlib.closing(Host("--accel-store", str(tmp_path))) as host:
        assert list(_labels(host, "accel_backend")) == ["auto", "aoti", "jit", "eager"]
        shown = html.unescape(host.opts.data_labels["accel_backend"].comment_after)
        assert shown.count("accel-text") == 2
        assert "tensorrt: TensorRT runs on NVIDIA's cards alone" in shown
        assert "kernels: the fused kernels run on NVIDIA's cards alone" in shown


def test_the_page_names_limits_and_units(host: Host) -> None:
    for name, (least, most) in LIMITS.items():
        info = host.opts.data_labels[name]
        slider = _component(host, name)
        assert (slider.minimum, slider.maximum) == (least, most)
        assert f"({least} to {most})" in info.comment_after
        assert "MiB" in info.label or name == "accel_witness_steps"


# -- the folder of compiled code, tried at the start


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("{tmp}/store", None),
        (
            "{tmp}/not/there",
            "neither {tmp}/not/there nor the folder that it would lie in exists yet; both are made "
            "with the first code; is the name right?",
        ),
        ("relative", "relative is no full path: compiled code is kept in {cwd}/relative"),
        ("Z:\\foo", "Z:\\foo is a path of Windows, and this is another system"),
        ("{tmp}/file", "{tmp}/file is a file, not a folder"),
        ("{tmp}/file/x", "{tmp}/file is a file, so {tmp}/file/x cannot be made"),
        ("~nobody-at-all/x", "names no place: "),
    ],
)
@pytest.mark.parametrize("by", ["flag", "environment"])
def test_the_folder_is_tried_at_the_start(
    packaging: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    said: str | None,
    by: str,
) -> None:
    """One sentence in the console, and the same in the tab; pictures are made all the same."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    places = {"tmp": tmp_path, "cwd": tmp_path}
    named = folder.format(**places)
    monkeypatch.setenv("ACCEL_STORE", named if by == "environment" else str(tmp_path / "other"))
    flags = ("--accel-store", named) if by == "flag" else ()
    with in_place(), contextlib.closing(Host(*flags)) as host:
        out = capsys.readouterr().out
        findings = host.module("lib_accel.host.stored_code").findings()
        host.opts.set("accel_backend", "eager")
        host.load()
        assert host.image().made
    shown = [f"{f.what}; {f.advice}" for f in findings if f.level != "ok"]
    if said is None:
        assert (out, shown) == ("", [])
    else:
        assert out.count("\n") == 1, out
        assert said.format(**places) in out
        assert any(said.format(**places) in text for text in shown), shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"], "nothing is left"
