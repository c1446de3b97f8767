"""The backend `kernels`: convolutions, products and attention by torch, all else by its own."""
