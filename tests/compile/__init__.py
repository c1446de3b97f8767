"""Tests of `lib_accel/compile`."""
