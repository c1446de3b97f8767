"""The WebUI side: the only folder that imports the WebUI's modules, gradio or fastapi."""

from __future__ import annotations

from importlib.util import find_spec


def is_forge() -> bool:
    """Return whether this WebUI is Forge or a child of it, by what can be imported."""
    return bool(find_spec("modules_forge") and (find_spec("backend") or find_spec("ldm_patched")))


def unknown_host() -> str | None:
    """Return why nothing can be accelerated in this WebUI, or None; it imports nothing of it."""
    supported = "AUTOMATIC1111's WebUI, Forge and reForge are supported"
    if name := _untried_forge():
        return (
            f"{name} calls its UNet in ways that were never tried, and nothing is accelerated; "
            f"{supported}"
        )
    if is_forge() or (find_spec("modules.sd_hijack_unet") and find_spec("ldm")):
        return None
    return f"this WebUI is none that is known, and nothing is accelerated; {supported}"


def _untried_forge() -> str | None:
    """Return the name of a child of Forge that was never started with this extension, or None."""
    if not is_forge():
        return None
    if find_spec("backend"):
        return "Forge Neo" if find_spec("backend.logging") else None
    return None if find_spec("modules.hypernetworks") else "Forge Classic"
