"""The backend `tensorrt`: engines whose weights are inputs, for every checkpoint, size and card."""
