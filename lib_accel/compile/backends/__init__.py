"""The backends: each is one way to make fast code for the units of a UNet."""
