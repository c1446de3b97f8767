"""The laboratory: torch with CUDA over a pretend driver, on a machine without a GPU.

Kernels compute nothing, and nothing here says how fast or how right a card would be. Compiling,
loading, launching, recording and memory are real: torch, Triton and Inductor are unchanged.
"""
