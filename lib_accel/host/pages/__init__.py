"""What a user sees: the settings, the status line, the Acceleration tab, the infotext."""
