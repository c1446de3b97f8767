"""The WebUI's VAEs: accelerated, and given back exactly as they were."""
