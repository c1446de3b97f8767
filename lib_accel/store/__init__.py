"""Compiled code on disk: artifacts, locks, signed exports."""
