"""Forge's model code."""
