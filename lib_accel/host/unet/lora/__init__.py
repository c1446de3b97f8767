"""Merging the LoRAs of the WebUI into the layers of a UNet."""
