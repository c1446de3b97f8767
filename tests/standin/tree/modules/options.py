"""Settings: each has a default, perhaps a stored value, and a function to call on a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class OptionInfo:
    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        onchange: Callable[[], object] | None = None,
    ):
        self.default, self.label, self.component, self.component_args, self.onchange = (
            default,
            label,
            component,
            component_args,
            onchange,
        )
        self.section: tuple[str | None, str] | None = None
        self.comment_after = ""

    def info(self, info: str) -> OptionInfo:
        self.comment_after += f"<span class='info'>({info})</span>"
        return self


def options_section(
    section_identifier: tuple[str, str], options_dict: dict[str, OptionInfo]
) -> dict[str, OptionInfo]:
    for option in options_dict.values():
        option.section = section_identifier
    return options_dict


class Options:
    def __init__(self, data_labels: dict[str, OptionInfo]):
        # a new dict, as in the WebUI: what is added to the templates later is not in it
        self.data_labels = dict(data_labels)
        self.data: dict[str, Any] = {k: v.default for k, v in data_labels.items()}

    def __getattr__(self, item: str) -> Any:
        if item in self.data:
            return self.data[item]
        if item in self.data_labels:
            return self.data_labels[item].default
        raise AttributeError(item)

    def set(self, key: str, value: Any) -> bool:
        """Store a value. Return whether it changed; where `onchange` raises, it has not."""
        before = self.data.get(key)
        if before == value:
            return False
        self.data[key] = value
        onchange = self.data_labels[key].onchange
        try:
            if onchange is not None:
                onchange()
        except Exception as e:  # noqa: BLE001
            print(f"{type(e).__name__}: {e}")  # after a line with the key and the value
            self.data[key] = before
            return False
        return True
