"""Every error this package raises on purpose.

Each message says what happened, what was expected and what to do, so that it can be shown to a user as it is.
"""


class AccelError(Exception):
    """Base class. Anything else that escapes the package is a bug."""


class UnsupportedArchitecture(AccelError):
    """The UNet is not one this engine can describe; the message names the key or shape that did not fit."""


class BadCheckpoint(AccelError):
    """The file cannot be read as a checkpoint, or holds no UNet."""


class BadWeights(AccelError):
    """The tensors do not fit the architecture, or are mixed in dtype or device, or hold NaN."""


class BackendUnavailable(AccelError):
    """A backend cannot work here; the message is the reason the user reads."""


class CompileFailed(AccelError):
    """The compiler failed, was cancelled, timed out or was killed."""


class NoRoom(CompileFailed):
    """For want of memory or disk space: another time it may succeed."""


class ArtifactRejected(AccelError):
    """Compiled code is damaged, unsigned, inaccurate or in a folder that others can write to.

    `key` names the artifact of the store that was refused, so that it can be discarded; None where
    the error is about something else.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class StoreError(AccelError):
    """The artifact store cannot be read or written (permissions, a full disk)."""
