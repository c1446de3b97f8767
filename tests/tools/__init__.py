"""The command line, the bench and the readers of checkpoints."""
