"""One compiled UNet for every checkpoint of an architecture.

Importing this package imports nothing else: not torch, not the WebUI. Take what you need from its modules.
"""

__version__ = "0.1.0"
ENGINE_VERSION = 2  # of the compiled code and the artifact layout: one more makes every stored artifact a stranger
