"""What `lib_accel.host` uses of the WebUI's modules, in the least code that behaves alike.

tests/standin/facts holds what is the same in both.
"""
