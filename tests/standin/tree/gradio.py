"""Components that keep what they were given, and buttons that can be pressed."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

warned: list[str] = []
shown: list[Component] = []  # all there are, in the order of creation


class Component:
    """A part of a page."""

    do_not_save_to_config: bool  # set from outside: keeps it out of the WebUI's ui-config.json

    def __init__(
        self,
        value: Any = None,
        *,
        elem_id: str | None = None,
        elem_classes: list[str] | None = None,
        visible: bool = True,
    ):
        self.value, self.elem_id, self.elem_classes, self.visible = (
            value,
            elem_id,
            elem_classes,
            visible,
        )
        shown.append(self)


class Request:
    """What a function is given for a parameter of this type."""

    def __init__(self, request: Any = None, **told: Any):
        self.request, self.told = request, told  # from the server, or what the sender has told


class HTML(Component):
    """Value: HTML."""


class Textbox(Component):
    """Value: text."""


class Button(Component):
    def __init__(
        self,
        value: str = "Run",
        *,
        visible: bool = True,
        interactive: bool = True,
        size: str | None = None,
        elem_id: str | None = None,
    ):
        super().__init__(value, elem_id=elem_id, visible=visible)
        self.interactive, self.size = interactive, size

    def click(
        self,
        fn: Callable[..., Any],
        inputs: Sequence[Component] | None = None,
        outputs: Sequence[Component] | None = None,
        api_name: str | None = None,
        queue: bool | None = None,
        show_progress: Any = "full",
        _js: str | None = None,
    ) -> None:
        self._handler, self._inputs, self._outputs, self.api_name = (
            fn,
            inputs or [],
            outputs or [],
            api_name,
        )

    def press(
        self, headers: dict[str, str] | None = None, told: dict[str, Any] | None = None
    ) -> list[Any]:
        """Do what the page does. Returns the values that the outputs were given.

        `headers` are those of the request. `told` is what a sender says of itself, in their place.
        """
        request = Request(**told) if told else Request(_request(headers or {}))
        hints = typing.get_type_hints(self._handler)
        more = [request for name in hints if name != "return" and hints[name] is Request]
        answer = self._handler(*(i.value for i in self._inputs), *more)
        for output, value in zip(
            self._outputs, answer if len(self._outputs) > 1 else [answer], strict=True
        ):
            if isinstance(value, dict) and value.get("__type__") == "generic_update":
                vars(output).update(value)
            else:
                output.value = value
        return [output.value for output in self._outputs]


class Checkbox(Component):
    """On or off."""

    def __init__(self, *, label: str | None = None, **given: Any):
        super().__init__(**given)
        self.label = label


class Radio(Component):
    """One of several choices: what is shown, and the value that stands for it."""

    def __init__(
        self,
        choices: Sequence[str | tuple[str, str]] | None = None,
        *,
        label: str | None = None,
        **given: Any,
    ):
        super().__init__(**given)
        self.label = label
        self.choices = [c if isinstance(c, tuple) else (c, c) for c in choices or ()]

    def preprocess(self, x: str) -> str:
        """Return what a function is given when `x` is chosen: the page sends the value."""
        return x


class Slider(Component):
    """A number in a range."""

    def __init__(
        self,
        minimum: float = 0,
        maximum: float = 100,
        *,
        step: float | None = None,
        label: str | None = None,
        **given: Any,
    ):
        super().__init__(**given)
        self.label, self.minimum, self.maximum, self.step = label, minimum, maximum, step


def Warning(message: str = "") -> None:  # noqa: A001
    """Show a message in the page that has called the function that runs, if one has."""
    warned.append(message)


def update(**values: Any) -> dict[str, Any]:
    """Return what a function answers to change a component."""
    return {**values, "__type__": "generic_update"}


def _request(headers: dict[str, str]) -> Any:
    import fastapi

    return fastapi.Request(None, fastapi.Headers(headers))  # type: ignore[attr-defined]


class _Layout:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class Blocks(_Layout):
    def __init__(self, analytics_enabled: bool | None = None): ...


class Row(_Layout):
    def __init__(self, elem_id: str | None = None): ...
