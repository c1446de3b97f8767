"""A store whose artifacts are shared with other machines through a remote store.

The folder is the cache: code is loaded from there alone, after the checks of every import. What is
put here is published in the background; what is missing here is fetched by whoever asks for it in a
thread of his own. The remote store may be slow, full, gone or hold garbage: then it is as if there
were none.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import threading
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import AccelError, ArtifactRejected, StoreError
from .. import signing
from ..artifact import Artifact
from ..store import ArtifactStore
from . import archive
from .leases import Leases
from .public_keys import PublicKeys
from .remote import Remote
from .vouching import Vouching

AT_EXIT_S = 10.0
"""How long the end of the process waits for what is being published."""

_log = logging.getLogger(__name__)


def store_of(config: Config) -> ArtifactStore:
    """Open the store that the configuration describes."""
    public = PublicKeys(config.trusted_keys, config.signing_key)
    if config.remote:  # read-only is then said of the remote store: the folder is its cache
        return SharedStore(
            config.remote,
            config.store,
            config.store_bytes,
            config.store_key,
            public,
            publish=not config.store_readonly,
        )
    return ArtifactStore(
        config.store, config.store_bytes, config.store_readonly, config.store_key, public
    )


class SharedStore(ArtifactStore):
    """The folder `root` as the cache of the remote store at `url`.

    With `publish` False nothing is written there, nor where no key signs for others: neither a
    store key that was given nor a private key.
    """

    def __init__(
        self,
        url: str,
        root: Path,
        max_bytes: int = 2 * 1024**3,
        key_file: Path | None = None,
        public: PublicKeys | None = None,
        publish: bool = True,
    ) -> None:
        super().__init__(root, max_bytes, key_file=key_file, public=public)
        self.remote = Remote(url)
        self.leases = Leases(self.remote)
        signs = key_file is not None or self._public.signer is not None  # for others, too
        self.publishes = publish and signs and self.remote.writable
        self._sent = threading.Condition()
        self._waiting: list[str] = []  # to be published; under `_sent`
        self._failed = self._settles = False

    def put(self, *given: Any, **named: Any) -> Artifact:
        """Put an artifact into the folder as every store does, and publish it in the background."""
        artifact = super().put(*given, **named)
        if self.publishes:
            self._send_later(artifact.key)
        return artifact

    def begin(self, key: str) -> bool:
        """Return whether this process is to make the artifact now.

        Else another machine is making it, or it was fetched just now.
        """
        if not self.publishes:  # nobody would learn that it is being made
            return True
        if not self.leases.take(key):
            # what is refused is made by whoever has the lease
            with contextlib.suppress(AccelError):
                self.fetch(key)
            return False
        try:
            fetched = self.fetch(key)  # its maker may have given the lease back just now
        except AccelError:
            return True
        if fetched:
            self.leases.give_back(key, published=True)
        return not fetched

    def give_back(self) -> None:
        """Let others make what was begun here, and neither put nor being published."""
        with self._sent:
            unsent = set(self._waiting)
        for key in set(self.leases.keys) - unsent:
            self.leases.give_back(key, published=False)

    def fetch(self, key: str) -> bool:
        """Take the artifact from the remote store, checked; return whether it is there.

        Whoever has fetched all that is wanted calls `make_room`, which looks at the whole folder.
        Raises StoreError where the remote store does not answer, ArtifactRejected where it has
        something else under this name, or code that nobody who is trusted has signed.
        """
        data = self.remote.read(f"{key}.zip")
        if data is None:
            return False
        # without a profile its maker's signature lets it serve again, or it is fetched again
        self._take(lambda work: self._unpack(key, data, work), lasting=False)
        return True

    def publish(self, key: str) -> bool:
        """Write the artifact to the remote store; return False where it is there already.

        Raises StoreError, ArtifactRejected.
        """
        artifact = self._load(key)
        if artifact is None:
            raise StoreError(
                f"Artifact {key[:12]} is not in {self.root}. Expected it there. Compile it first."
            )
        stream = io.BytesIO()
        store_key = signing.store_key(self._key_file)
        archive.write(stream, archive.members_of(artifact, self._public, store_key), None)
        name, data = f"{key}.zip", stream.getvalue()
        if self.remote.write(name, data):
            return True
        try:
            self.fetch(key)
        except ArtifactRejected:  # what lies there can serve nobody with our keys
            return self.remote.write(name, data, replace=True)
        return False

    def settle(self, timeout_s: float) -> bool:
        """Wait until what was put is published, or cannot be; return whether that was in time."""
        with self._sent:
            timeout = min(timeout_s, threading.TIMEOUT_MAX)
            return self._sent.wait_for(lambda: not self._waiting, timeout)

    def _send_later(self, key: str) -> None:
        with self._sent:
            self._waiting.append(key)
            if len(self._waiting) == 1:
                threading.Thread(target=self._send, name="accel-publish", daemon=True).start()
            if not self._settles:
                self._settles = True
                atexit.register(self.settle, AT_EXIT_S)

    def _send(self) -> None:
        while True:
            with self._sent:
                key = self._waiting[0]
            published = False
            try:
                self.publish(key)
                published = True
            except AccelError as error:
                if not self._failed:
                    self._failed = True  # once: a store that is gone fails for each artifact
                    _log.warning("Artifact %s was not published: %s", key[:12], error)
            self.leases.give_back(key, published)
            with self._sent:
                self._waiting.pop(0)
                self._sent.notify_all()
                if not self._waiting:
                    return

    def _unpack(self, key: str, data: bytes, work: Path) -> dict[str, dict[str, Any]]:
        store_key = signing.store_key(self._key_file)
        vouching = Vouching(None, allow_unsigned=False, public=self._public, store_key=store_key)
        source = f"{self.remote.shown}/{key}.zip"
        origin = f"fetched from {self.remote.shown}"
        manifests = archive.unpack_stream(
            io.BytesIO(data), source, origin, work, vouching, self.max_bytes
        )
        if [*manifests] != [key]:
            raise ArtifactRejected(
                f"{source} was not imported: it holds {', '.join(k[:12] for k in manifests)}. "
                "Expected the artifact that its name says. Remove it there."
            )
        return manifests
