"""What works without the WebUI: set-up, the command line, the bench, readers of checkpoints."""
