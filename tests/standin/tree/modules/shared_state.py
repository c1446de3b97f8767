"""What the WebUI is doing, and which buttons were pressed meanwhile."""

from __future__ import annotations


class State:
    skipped = False
    interrupted = False
    stopping_generation = False
    textinfo: str | None = None

    def skip(self) -> None:
        self.skipped = True

    def interrupt(self) -> None:
        self.interrupted = True

    def stop_generating(self) -> None:
        self.stopping_generation = True
