"""The ladder: one row a variant of the same UNet call, in one process, interleaved, against one reference of higher precision."""
