"""What a user sees in the WebUI: the settings, the status line, the Acceleration tab and the mark in the infotext."""
