"""The lock that is held while an image is being made."""

import threading

queue_lock = threading.Lock()  # not re-entrant, like the WebUI's
