"""End to end, in a real WebUI whose folder the environment variable ACCEL_WEBUI names."""
