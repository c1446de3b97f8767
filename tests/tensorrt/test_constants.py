"""Which of the two forms of a UNet's engine serves, with torch in place of both engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.compile.backends.tensorrt import constants
from lib_accel.compile.backends.tensorrt.constants import CALLS, TIMED, TwoForms, sums_of
from lib_accel.errors import CompileFailed


@dataclass
class Form:
    """An engine that multiplies its input by its weight: the one it is given, or its own."""

    own: Tensor | None = None
    calls: int = 0
    asked: int = 0
    activations: tuple[str, ...] = ("x",)

    def why_not(self, activations: list[Tensor]) -> str | None:
        return "too large" if activations[0].numel() > 100 else None

    def settled(self, activations: list[Tensor]) -> bool:
        self.asked += 1
        return self.own is None or self.asked > 4  # its kernels are made

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        self.calls += 1
        return tensors[0] * (tensors[1] if self.own is None else self.own)[0, 0]


class Built:
    """A job that is done at once; `wrong` is what it builds in instead."""

    size = 1000

    def __init__(self, weights: Sequence[Tensor]):
        copies = [weight.clone() for weight in weights]
        self.sums, self.form, self.done = sums_of(copies), Form(copies[0]), True
        self.cancelled = False

    def result(self) -> dict[str, Form]:
        return {"unet": self.form}

    def cancel(self) -> None:
        self.cancelled = True


class Play:
    """Two forms, the one weight, and what was started; `seconds` a call of each takes."""

    def __init__(self, seconds: tuple[float, float] = (1.0, 0.5)):
        self.weight, self.x = torch.full((4, 4), 3.0), torch.ones(2)
        self.inputs, self.started, self.seconds = Form(), list[Any](), seconds
        self.forms = TwoForms(self.inputs, self.start, self.timed)  # type: ignore[arg-type]
        self.forms.begin_image()

    def start(self, weights: Sequence[Tensor]) -> Any:
        self.started.append(Built(weights))
        return self.started[-1]

    def timed(self, call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], float]]:
        before = self.inputs.calls
        out = call()
        seconds = self.seconds[self.inputs.calls == before]
        return out, lambda: seconds

    def calls(self, count: int = 1) -> Tensor:
        for _ in range(count):
            out = self.forms([self.x, self.weight])
            assert torch.equal(out, self.x * self.weight[0, 0])
        return out

    @property
    def constants_serve(self) -> bool:
        before = self.inputs.calls
        self.calls()
        return self.inputs.calls == before


ENOUGH = CALLS + 2 * TIMED + 10
"""Calls after which it is decided."""


@pytest.fixture
def play() -> Play:
    return Play()


def test_weights_that_stay_are_built_in_and_serve_where_that_is_faster(play: Play):
    play.calls(CALLS)
    assert not play.started
    assert play.forms.settled([play.x])
    play.calls(ENOUGH - CALLS)
    assert len(play.started) == 1
    assert play.constants_serve
    assert play.forms.kept_bytes == 1000
    assert not play.forms.settled([play.x]), "a recording would not see a change of weights"


def test_weights_as_inputs_serve_where_the_other_form_is_not_faster():
    play = Play(seconds=(1.0, 0.99))
    play.calls(ENOUGH)
    assert len(play.started) == 1
    assert not play.constants_serve
    assert play.forms.kept_bytes == 0
    play.calls(ENOUGH)
    assert len(play.started) == 1, "it is not tried again"


@pytest.mark.parametrize("through_data", [False, True])
def test_a_lora_is_seen_and_its_end_too(play: Play, through_data: bool):
    play.calls(ENOUGH)
    weight = play.weight.data if through_data else play.weight
    weight.add_(1)
    if through_data:  # torch does not count this: the next image shows it
        play.forms.begin_image()
    assert not play.constants_serve
    assert play.forms.settled([play.x])
    weight.sub_(1)
    play.forms.begin_image()
    assert play.constants_serve
    assert len(play.started) == 1


def test_other_weights_are_built_in_when_they_have_stayed(play: Play):
    play.calls(ENOUGH)
    play.weight = torch.full((4, 4), 5.0)
    play.calls(CALLS)
    assert len(play.started) == 1
    play.calls(ENOUGH)
    assert len(play.started) == 2
    assert play.started[0].cancelled
    assert play.constants_serve


def test_weights_that_changed_while_they_were_copied_never_serve(play: Play):
    play.calls(CALLS + 1)
    (job,) = play.started
    job.sums = job.sums + 1
    play.calls(ENOUGH)
    assert len(play.started) == 2, "they are copied again"


def test_a_result_that_differs_is_never_used(play: Play):
    play.calls(CALLS + 1)
    play.started[0].form.own = torch.full((4, 4), 3.5)
    play.calls(ENOUGH)
    assert not play.constants_serve
    assert play.forms.kept_bytes == 0


def test_an_engine_that_cannot_be_built_is_not_tried_again(
    play: Play, monkeypatch: pytest.MonkeyPatch
):
    def fail(self: Built) -> Any:
        raise CompileFailed("no memory")

    monkeypatch.setattr(Built, "result", fail)
    play.calls(2 * ENOUGH)
    assert len(play.started) == 1


def test_memory_is_given_up_and_taken_again_when_there_is_some(
    play: Play, monkeypatch: pytest.MonkeyPatch
):
    play.calls(ENOUGH)
    assert play.forms.give_up()
    assert not play.forms.give_up()
    monkeypatch.setattr(constants, "has_room", lambda device, needed: False)
    play.calls(ENOUGH)
    assert len(play.started) == 1
    monkeypatch.undo()
    play.calls(ENOUGH)
    assert len(play.started) == 2


def test_large_weights_and_those_of_nobody_with_images_stay_inputs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "MOST_BYTES", 60)
    play = Play()
    play.calls(ENOUGH)
    assert not play.started
    monkeypatch.undo()
    plain = Play()
    plain.forms = TwoForms(plain.inputs, plain.start, plain.timed)  # type: ignore[arg-type]
    plain.calls(ENOUGH)
    assert not plain.started


def test_forms_are_timed_at_one_size(play: Play):
    for size in (3, 4) * ENOUGH:
        play.x = torch.ones(size)
        play.calls()
    assert not play.constants_serve
    play.calls(ENOUGH)
    assert play.constants_serve
    play.x = torch.ones(5)
    assert play.constants_serve, "what is decided holds for each size"


def test_a_size_outside_of_the_profile_is_left_to_inputs(play: Play):
    play.calls(ENOUGH)
    play.x = torch.ones(200)
    assert not play.constants_serve
    assert play.forms.why_not([play.x]) == "too large"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_sum_of_bits_shows_the_smallest_change(dtype: torch.dtype):
    weights = [torch.randn(8, 8).to(dtype), torch.randn(3).to(dtype)]
    before = sums_of(weights)
    assert torch.equal(before, sums_of([weight.clone() for weight in weights]))
    weights[1][2] = torch.nextafter(weights[1][2].float(), torch.tensor(9.0)).to(dtype) + 1
    assert torch.ne(before, sums_of(weights)).tolist() == [False, True]
