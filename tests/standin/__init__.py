"""A stand-in for the WebUI, and the host side run against it. What it stands in for is compared with a real one in tests/webui."""
