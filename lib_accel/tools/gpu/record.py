"""The one JSON file of a run: written whenever something is known, and read again to go on.

    {"identity": {...}, "notes": ["..."], "runs": [{"began": ..., "minutes": 8, "seconds": ...}],
     "jobs": {name: {"state": "done" | "failed" | "ended" | "running", "seconds": ...,
                     "why": ..., "failures": 0, "result": {...}}}}

Its name holds the card, the version of torch and the digest of the source, so another machine or
another version of the code has another file.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from pathlib import Path
from typing import Any

from ...errors import AccelError


class Record:
    """The results so far. `identity` is what must be the same for a run to go on.

    Raises AccelError where the file is there and cannot be read.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], minutes: float):
        words = ("gpu", identity["device_name"], identity["torch"], identity["source"][:8])
        stem = re.sub(r"[^a-z0-9.]+", "-", "-".join(words).lower())
        self.path = folder / f"{stem}{'-dry-run' if identity['dry_run'] else ''}.json"
        began = datetime.datetime.now().isoformat(timespec="seconds")
        run = {"began": began, "minutes": minutes, "seconds": 0.0}
        self.data: dict[str, Any] = {"identity": identity, "notes": [], "runs": [], "jobs": {}}
        if self.path.exists():
            self.data = self._read()
        self.data["runs"].append(run)
        self.save()

    def _read(self) -> dict[str, Any]:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if not all(isinstance(data[k], t) for k, t in (("jobs", dict), ("runs", list))):
                raise ValueError("it has no jobs or runs")
        except (ValueError, KeyError, TypeError) as e:
            raise AccelError(
                f"{self.path} is no result of this command ({e}); expected one to go on with. "
                "Move it away"
            ) from e
        return data

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """What is known of each job, by its name."""
        return self.data["jobs"]

    def note(self, text: str) -> None:
        """Keep a sentence that one must know to read the results, once."""
        if text not in self.data["notes"]:
            self.data["notes"].append(text)
            self.save()

    def save(self) -> None:
        """Write the file in one step: whoever reads it, or kills this, finds it whole."""
        draft = self.path.with_suffix(".part")
        text = json.dumps(finite(self.data), indent=1, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(self.path)


def finite(value: Any) -> Any:
    """Return `value` with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
