"""Benchmarks: the ladder of variants of one UNet call."""
