"""The model's code. `lib_accel.inspection` takes a package of this name for the UNet's own home."""
