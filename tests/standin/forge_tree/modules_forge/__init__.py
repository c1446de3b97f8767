"""Forge's own modules: they tell that this WebUI is Forge."""
