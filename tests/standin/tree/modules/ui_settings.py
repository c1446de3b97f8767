"""The settings page: a component for each setting."""

from __future__ import annotations

from typing import Any

import gradio as gr

from modules.shared import opts


def create_setting_component(key: str) -> Any:
    """Return the component that shows a setting."""
    info = opts.data_labels[key]
    component = info.component or gr.Checkbox
    return component(
        label=info.label,
        value=getattr(opts, key),
        elem_id=f"setting_{key}",
        **(info.component_args or {}),
    )


def get_value_for_setting(key: str) -> dict[str, Any]:
    """Return what sets the component when a page is opened."""
    return gr.update(value=getattr(opts, key), **(opts.data_labels[key].component_args or {}))
