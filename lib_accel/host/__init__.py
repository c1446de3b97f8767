"""The WebUI side: the only folder that imports the WebUI's modules, gradio or fastapi."""
