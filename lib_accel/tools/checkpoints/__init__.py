"""Readers of checkpoints, in all the formats that people have."""
