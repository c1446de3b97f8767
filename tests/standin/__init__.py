"""A stand-in for the WebUI, and the tests of lib_accel.host in it. tests/webui checks it."""
