"""Tests of lib_accel/model: reading architectures, the clean UNet, its precision."""
