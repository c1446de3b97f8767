"""The run on a GPU: everything that only one can show, most valuable first, within some minutes."""
