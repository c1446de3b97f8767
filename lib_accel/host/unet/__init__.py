"""A UNet of the WebUI while it is accelerated: what stands on it, and what others change in it."""
