"""Forge's networks."""
