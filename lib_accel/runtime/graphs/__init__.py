"""CUDA graphs of UNet calls: recording and replaying them (cache.py), and when to (policy.py).

memory.py gives up what they and others keep in video memory.
"""
