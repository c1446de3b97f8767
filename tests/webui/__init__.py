"""End to end, inside a real WebUI that is told by the environment variable ACCEL_WEBUI."""
