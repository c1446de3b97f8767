"""What `lib_accel.host` uses of the WebUI's own modules, in the least code that behaves alike (tests/standin/facts.py says how)."""
