"""A `launch.py` that answers what the command `cost` asks of a WebUI, and makes no pictures.

It reports a start-up, and takes 20 ms for a picture, 100 ms more after a change of the prompt.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

ARGUMENTS = dict(zip(sys.argv, sys.argv[1:], strict=False))
DATA = Path(ARGUMENTS["--data-dir"])
OURS = (DATA / "extensions" / "accel" / "scripts" / "accel.py").exists()
PROBED = (DATA / "extensions" / "probe" / "scripts" / "accel_cost.py").exists()
ANSWERS = {
    "/internal/profile-startup": {
        "total": 3.0,
        "records": {"load scripts": 1.0, "load scripts/accel.py": 0.25 if OURS else 0.0},
    },
}
if OURS:
    status = {"state": "ready", "backend": "aoti", "reason": None, "progress": None}
    ANSWERS |= {"/accel/v1/status": status}
if PROBED:
    ANSWERS |= {"/accel-cost/overhead": {"ms": 0.5}}
prompt = ""


class Handler(BaseHTTPRequestHandler):
    """Answers requests as the WebUI's API does."""

    def do_GET(self) -> None:
        """Answer what is known, else 404."""
        self.answer(ANSWERS.get(self.path))

    def do_POST(self) -> None:
        """Take the time of a picture, or answer nothing."""
        global prompt
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/sdapi/v1/txt2img":
            time.sleep(0.12 if body["prompt"] != prompt else 0.02)
            prompt = body["prompt"]
        self.answer({})

    def answer(self, value: object) -> None:
        """Send JSON, or 404 for None."""
        self.send_response(404 if value is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


if "--fail" in sys.argv:
    sys.exit("RuntimeError: this WebUI fails")
server = HTTPServer(("127.0.0.1", int(ARGUMENTS["--port"])), Handler)
print("Startup time: 3.0s\nModel loaded in 0.1s", flush=True)
server.serve_forever()
