"""Where things lie."""

extensions_dir = "/webui/extensions"
