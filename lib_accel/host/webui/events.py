"""What happens as lines of JSON, for programs that collect logs: --accel-log-json."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone

NAME = "accel-json"
_LOGGER = "lib_accel"  # above those of all modules


def line(level: str, source: str, event: str) -> str:
    """Return one event as one line of ASCII, which every console can show."""
    time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "level": level, "source": source, "event": event})


class Events(logging.Handler):
    """Prints what the package logs, on standard output as the WebUI's own words."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one event."""
        print(line(record.levelname.lower(), record.name, record.getMessage()), flush=True)


def begin() -> None:
    """Let all that the package logs be printed so, once."""
    end()
    handler = Events()
    handler.set_name(NAME)
    logger = logging.getLogger(_LOGGER)
    logger.addHandler(handler)
    logger.propagate = False


def end() -> None:
    """Let the WebUI print it again, as it does for everybody."""
    logger = logging.getLogger(_LOGGER)
    for handler in [each for each in logger.handlers if each.get_name() == NAME]:
        logger.removeHandler(handler)
    logger.propagate = True
