"""The backend `tensorrt`, up to the last step without a GPU."""
