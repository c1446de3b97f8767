"""Benchmarks: the ladder of variants of one UNet call, and the cost of the extension in a WebUI."""
