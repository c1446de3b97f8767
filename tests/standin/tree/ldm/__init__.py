"""The model's code, in a package that `lib_accel.host.inspection` knows as the UNet's own."""
