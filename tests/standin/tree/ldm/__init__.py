"""The model's code. `lib_accel.host.inspection` takes a package of this name for the UNet's own home."""
