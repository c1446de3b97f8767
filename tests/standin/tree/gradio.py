"""Components that remember what they were given, and buttons that can be pressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

shown: list[Component] = []  # all there are, in the order of creation


class Component:
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


class HTML(Component):
    """Value: HTML."""


class Textbox(Component):
    """Value: text."""


class Button(Component):
    def __init__(
        self,
        value: str = "Run",
        *,
        variant: str = "secondary",
        visible: bool = True,
        elem_id: str | None = None,
    ):
        super().__init__(value, elem_id=elem_id, visible=visible)
        self.variant = variant

    def click(
        self,
        fn: Callable[..., Any],
        inputs: list[Component] | None = None,
        outputs: list[Component] | None = None,
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

    def press(self) -> None:
        """What the page does: one value for one output, else one for each."""
        answer = self._handler(*(i.value for i in self._inputs))
        for output, value in zip(
            self._outputs, answer if len(self._outputs) > 1 else [answer], strict=True
        ):
            output.value = value


class Radio(Component):
    """One of several."""


class Slider(Component):
    """A number."""


class _Layout:
    def __enter__(self) -> _Layout:
        return self

    def __exit__(self, *_: object) -> None: ...


class Blocks(_Layout):
    def __init__(self, analytics_enabled: bool | None = None): ...


class Row(_Layout):
    """Beside one another."""


class Column(_Layout):
    def __init__(self, scale: int = 1, min_width: int = 320): ...
