"""One accelerated UNet: its weights, its compiled code, CUDA graphs, LoRA merging."""
