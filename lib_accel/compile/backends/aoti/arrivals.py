"""Code that comes from elsewhere unchecked: it serves only after it was checked on this machine.

It was made where nothing could run it (`prebuild --for cuda:sm_86`). A worker process runs it
first: code that ends its process ends nothing else.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from ....errors import AccelError, ArtifactRejected, NoRoom
from ....store import Artifact, ArtifactStore
from ...accuracy import Verdict
from ...target import Target
from .load import misfit
from .worker_process import Answer, Worker

# as torch and the system word it
NO_ROOM = ("out of memory", "No space left on device", "Disk quota exceeded")
_log = logging.getLogger(__name__)


class Arrivals:
    """What a job knows of unchecked code for `target`.

    `checked` has the checksums of what has passed in this process, from which the backend loads.
    """

    def __init__(self, target: Target, store: ArtifactStore, checked: set[str]) -> None:
        self._target, self._store, self._checked = target, store, checked
        self._refused: dict[str, str] = {}  # by checksum

    def include(self, artifact: Artifact) -> bool:
        """Return whether the artifact has to be checked before it may serve."""
        return artifact.verdict is None and artifact.checksum not in self._checked

    def place(self, artifact: Artifact) -> Path:
        """Return where its code lies, to be run. Raises ArtifactRejected where it must not be."""
        if why := self._refused.get(artifact.checksum):  # fetched once more
            raise ArtifactRejected(why, artifact.key)
        folder = self._store.place(artifact)
        cpu = artifact.manifest.get("made_with", {}).get("cpu")
        if why := misfit(folder, self._target.machine, cpu):
            raise self._refusal(artifact, why)
        return folder

    def finish(self, worker: Worker, answer: Answer | None) -> bool:
        """Take the answer of a worker that checks an artifact; return whether that has passed.

        None is that of a worker that died. Raises ArtifactRejected where it must not serve, NoRoom.
        """
        artifact = worker.artifact
        assert artifact is not None
        if answer is None:
            said, code = worker.log_tail(), worker.exit_code()
            why = f"it ended the process that checked it (exit {code}): {said}"
            raise self._refusal(artifact, why)
        if "error" in answer:
            text = answer["error"]
            if any(words in text for words in NO_ROOM):
                raise NoRoom(f"artifact {artifact.key[:12]} could not be checked: {text}")
            raise self._refusal(artifact, f"it does not run here: {text}")
        if not answer.get("ok"):
            return False  # it only reports what it is doing
        verdict = Verdict.from_dict(answer["verdict"])
        if not verdict.passed:
            raise self._refusal(artifact, f"it is inaccurate here: {verdict}")
        self._checked.add(artifact.checksum)
        self._record(artifact, {**verdict.to_dict(), "seconds": round(answer["seconds"], 1)})
        return True

    def _record(self, artifact: Artifact, verdict: dict[str, object]) -> None:
        """Let the store remember; where it cannot, the next process checks again."""
        if self._store.readonly:
            return
        try:
            self._store.record(artifact, verdict)
        except AccelError as error:
            _log.info("Artifact %s is checked again at every start: %s", artifact.key[:12], error)

    def _refusal(self, artifact: Artifact, why: str) -> ArtifactRejected:
        text = f"artifact {artifact.key[:12]} came unchecked, and {why}"
        self._refused[artifact.checksum] = text
        return ArtifactRejected(text, artifact.key)


def discard(store: ArtifactStore, error: ArtifactRejected) -> None:
    """Remove the artifact that was refused, where that is possible."""
    with contextlib.suppress(AccelError):
        if error.key is not None:
            store.discard(error.key, str(error))
