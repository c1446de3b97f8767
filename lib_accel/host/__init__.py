"""The host side: the only rooms that know the WebUI. `webui` is the one door to `modules.*` and the Lora extension."""
