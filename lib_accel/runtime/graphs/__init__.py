"""CUDA graphs of UNet calls: recording and replaying them (cache.py), and when to (policy.py)."""
