"""The GPU path on a machine without a GPU: run with `python3 -m tests gpu`."""
