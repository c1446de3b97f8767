"""The model's code, in a package that `lib_accel.host.unet.functions` knows as the UNet's own."""
