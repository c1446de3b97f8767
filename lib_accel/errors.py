"""Every error that this package raises on purpose.

Each message says what happened, what was expected and what to do; it is shown to users unchanged.
"""


def printable(text: str) -> str:
    """Return the text as one line that a terminal only shows, of about 2000 characters at most.

    Names come from file systems and from files, and may hold control characters. What a sentence
    expects comes after them.
    """
    shown = text if len(text) <= 2000 else f"{text[:1000]}...{text[-1000:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def printable_lines(text: str) -> str:
    """Return the text so that a terminal only shows it; line breaks stay."""
    return "\n".join(map(printable, text.split("\n")))


class AccelError(Exception):
    """Base class. Any other exception that leaves the package is a bug.

    What it says holds names from file systems, networks and other people's files, and goes to
    consoles, pages and JSON: they only show it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable_lines(message))


class UnsupportedArchitecture(AccelError):
    """A UNet that this package cannot describe. The message names the key or shape that differs."""


class BadCheckpoint(AccelError):
    """A file that cannot be read as a checkpoint or LoRA, or that holds no UNet."""


class BadWeights(AccelError):
    """Tensors that do not fit the architecture, are mixed in dtype or device, or hold NaN."""


class BackendUnavailable(AccelError):
    """A backend that cannot work here. The message is the reason that users read."""


class CompileFailed(AccelError):
    """A compile that failed, was cancelled, timed out or was killed."""


class NoRoom(CompileFailed):
    """A compile that ran out of memory or disk space; another time it may succeed."""


class ArtifactRejected(AccelError):
    """Code that is damaged, incompatible, unsigned, inaccurate or writable by others.

    `key` names the artifact of the store that was refused, so that it can be discarded; None where
    the error is about something else.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class StoreError(AccelError):
    """An artifact store that cannot be read or written (permissions, a full disk)."""
