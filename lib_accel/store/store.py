"""The artifact store: compiled units on disk, one folder for each.

An artifact is `<root>/<key>/`. It appears whole, by one rename, or not at all; its signature and
checksums are checked each time it is read. Everything besides in the root is the store's own and
hidden: `.accel-store` (its mark), `.locks/` (empty files, kept: removing a lock file that another
process waits on would break the lock), `.tmp-*` (being written; the writer holds the lock of that
name) and `.trash-*` (being removed).
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import AccelError, ArtifactRejected, StoreError
from . import artifact as folders
from . import cleanup, files, signing
from .artifact import Artifact, Entry
from .exchange import archive
from .exchange.public_keys import PublicKeys
from .exchange.vouching import Vouching
from .files import os_errors
from .locks import hold, workspace
from .manifest import BUILT_HERE, ForeignArtifact, new_manifest, require_names, write_manifest
from .privacy import closed_to_others, require_private_root

Keys = tuple[signing.KeyReader, PublicKeys]
_log = logging.getLogger(__name__)


class ArtifactStore:
    """A folder of artifacts that several processes may use at once.

    Nothing is created before the first write. Every method raises StoreError when the disk fails.
    `key_file` holds the store key; by default it is the user's own. `public` names the public keys
    that are trusted as well, and the private key that signs what is put.
    """

    def __init__(
        self,
        root: Path,
        max_bytes: int = 2 * 1024**3,
        readonly: bool = False,
        key_file: Path | None = None,
        public: PublicKeys | None = None,
    ) -> None:
        if max_bytes <= 0:
            raise StoreError(
                f"The store's size limit is {max_bytes} bytes. Expected more than 0. "
                "Raise it in the settings."
            )
        self.root = files.expanded(Path(root))
        self.max_bytes, self.readonly = max_bytes, readonly
        self._key_file, self._public = key_file, public or PublicKeys()

    def get(self, key: str) -> Artifact | None:
        """Return the artifact, checked, and mark it as used; None when there is none.

        Raises ArtifactRejected with the key where it must not serve.
        """
        artifact = self._load(key)
        if artifact is not None and not self.readonly:
            folders.mark_used(artifact)
        return artifact

    def place(self, artifact: Artifact) -> Path:
        """Return a folder with the files of the artifact that nobody else can exchange.

        It is the artifact's own where only the user and root can reach it, else a private copy that
        lasts as long as this process. Raises ArtifactRejected when a file was changed since.
        """
        with os_errors(f"load artifact {artifact.key[:12]}"):
            return artifact.path if closed_to_others(self.root) else folders.private_copy(artifact)

    def entry(self, key: str) -> Entry | None:
        """Return what `list` has of one artifact; None when there is none."""
        with os_errors(f"look for artifact {key[:12]} in {self.root}"):
            entry = folders.entry_of(self._path(key))
        return next(self._inspect([entry] if entry else []), None)

    def contains(self, key: str) -> bool:
        """Return whether there is an artifact, good or damaged; reads none of it."""
        with os_errors(f"look for artifact {key[:12]} in {self.root}"):
            return files.identity_of(self._path(key)) is not None

    def put(
        self,
        recipe: Mapping[str, Any],
        sources: Mapping[str, Path],
        verdict: Mapping[str, Any] | None = None,
        keep: Collection[str] = (),
        name: str = "",
        made_with: Mapping[str, str | None] | None = None,
        origin: str = BUILT_HERE,
    ) -> Artifact:
        """Copy `sources` (name in the artifact: where the file is now) into the store.

        The key is the sha256 of `recipe`; `name` is the model family. A good artifact that is there
        already is kept and returned, unless only this one was checked. Others are removed when the
        store exceeds its limit, but none whose key is in `keep`. Raises StoreError when a name or
        the recipe is not acceptable.
        """
        manifest = new_manifest(recipe, verdict, name, made_with, origin)
        key = manifest["key"]
        require_names(sources)
        self._prepare(f"store artifact {key[:12]}")
        store_key = signing.make_store_key(self._key_file)
        with os_errors(f"store artifact {key[:12]} in {self.root}"), workspace(self.root) as work:
            draft = work / key
            draft.mkdir(mode=0o700)
            manifest["files"] = folders.write_files(draft, sources)
            write_manifest(draft, self._public.signed(manifest), store_key)
            artifact = self._publish(draft, key)
        self.make_room({key, *keep})
        return artifact

    def make_room(self, keep: Collection[str]) -> None:
        """Remove what exceeds the limit, but not `keep`; log it where that fails."""
        cleanup.make_room(self.root, self._scan, self.max_bytes, keep)

    def record(self, artifact: Artifact, verdict: Mapping[str, Any]) -> None:
        """Note what the check of an artifact that came unchecked has measured, and sign that.

        Its maker's signature stays, so that it can be revoked. Raises StoreError, also where the
        store key would not last.
        """
        doing = f"note the check of artifact {artifact.key[:12]}"
        self._require_writable(doing)
        store_key = signing.make_store_key(self._key_file, lasting=True)
        manifest = self._public.signed({**artifact.manifest, "verdict": dict(verdict)}, anew=True)
        with os_errors(doing), workspace(self.root) as work:
            folders.replace_manifest(artifact, manifest, store_key, work)

    def begin(self, key: str) -> bool:
        """Return whether this process is to make the artifact now. It does not wait."""
        return True

    def give_back(self) -> None:
        """Let others make what was begun here and not put."""

    def list(self) -> builtins.list[Entry]:
        """Return every artifact, least recently used first. Checksums are compared by `verify`."""
        return [*self._inspect(self._scan())]

    def check(self) -> None:
        """Raise StoreError or ArtifactRejected when nothing can be kept here. Leaves nothing."""
        with os_errors(f"use the store {self.root}"):
            if os.path.lexists(self.root):
                require_private_root(self.root)
                cleanup.require_store(self.root)
            signing.store_key(self._key_file)
            self._public.check()
            if not self.readonly:
                files.require_room(self.root, cleanup.trash_name())

    def verify(self) -> builtins.list[tuple[str, str | None]]:
        """Return every key with what is wrong with it, or None. Reads every byte."""
        return [(e.key, e.problem) for e in self._inspect(self._scan(), content=True)]

    def discard(self, key: str, reason: str = "") -> None:
        """Remove an artifact if it is there, and log the reason, if it is not the user's wish."""
        path = self._path(key)
        self._require_writable(f"discard artifact {key[:12]}")
        with os_errors(f"discard artifact {key[:12]}"):
            if not os.path.lexists(path):
                return
            cleanup.claim(self.root)
            freed = cleanup.remove(self.root, path)
        if freed and reason:
            _log.warning("Discarded artifact %s: %s", key[:12], reason)

    def clear(self) -> int:
        """Remove every artifact, locked or not, and what dead processes left; return the bytes."""
        self._require_writable("clear the store")
        if not os.path.lexists(self.root):
            return 0
        cleanup.claim(self.root)
        return cleanup.clear(self.root, self._scan())

    @contextlib.contextmanager
    def lock(self, key: str, timeout: float | None) -> Iterator[None]:
        """Hold the only right to compile `key`, the key of an artifact or of a target.

        Raises LockBusy after `timeout` seconds (None: wait, 0: do not wait). The system releases
        the lock when its holder dies. Enter and leave it in one thread; it cannot be taken twice.
        """
        self._path(key)
        self._prepare(f"lock artifact {key[:12]}")
        with hold(self.root, key, timeout):
            yield

    def export(self, keys: Iterable[str], destination: Path, signing_key: bytes | None) -> None:
        """Check the artifacts and write them to one zip, signed with this and the private key."""
        members, store_key = {}, signing.store_key(self._key_file)
        for key in keys:
            artifact = self._load(key)
            if artifact is None:
                what = f"Artifact {key[:12]} is not in {self.root}"
                raise StoreError(f"{what}. Expected one that is. Compile it first.")
            members |= archive.members_of(artifact, self._public, store_key)
        archive.pack(Path(destination), members, signing_key)

    def import_(
        self, source: Path, signing_key: bytes | None, allow_unsigned: bool = False
    ) -> builtins.list[Artifact]:
        """Put the artifacts of an export into the store and return them.

        All are checked before any becomes visible; a good one that is here already is kept. Raises
        ArtifactRejected when one of them, or the signature, is not acceptable.
        """
        vouching = Vouching(signing_key, allow_unsigned, self._public)
        taken = self._take(lambda work: archive.unpack(source, work, vouching, self.max_bytes))
        self.make_room({artifact.key for artifact in taken})
        return taken

    def _take(
        self, unpack: Callable[[Path], Mapping[str, dict[str, Any]]], lasting: bool = True
    ) -> builtins.list[Artifact]:
        """Put what `unpack` puts into the folder it is given; it returns manifests by key."""
        self._prepare("import")
        store_key = signing.make_store_key(self._key_file, lasting)
        with os_errors(f"import into {self.root}"), workspace(self.root) as work:
            manifests = unpack(work)
            for key, manifest in manifests.items():
                write_manifest(work / key, manifest, store_key)
            return [self._publish(work / key, key) for key in manifests]

    def _path(self, key: str) -> Path:
        if not files.ARTIFACT_KEY.fullmatch(key):
            raise StoreError(
                f"{key[:80]!r} is not an artifact key. "
                "Expected 64 lowercase hex digits, the sha256 of a recipe."
            )
        return self.root / key

    def _require_writable(self, doing: str) -> None:
        if self.readonly:
            raise StoreError(
                f"Could not {doing}: the store {self.root} is used read-only. "
                "Expected a writable store. Change the setting or the folder."
            )

    def _prepare(self, doing: str) -> None:
        """Create the root if it is missing, and make sure that it may be written."""
        self._require_writable(doing)
        with os_errors(doing):
            files.make_folder(self.root)
            cleanup.claim(self.root)

    def _load(self, key: str, content: bool = True, keys: Keys | None = None) -> Artifact | None:
        """Return the artifact, checked; None when there is none."""
        with os_errors(f"read artifact {key[:12]}"):
            read_key, public = keys or self._keys()
            return folders.load_artifact(self._path(key), read_key(), public, content)

    def _keys(self) -> Keys:
        """Return what checks signatures and reads each file of keys once."""
        return signing.key_reader(self._key_file), self._public.reading_once()

    def _inspect(self, entries: Iterable[Entry], content: bool = False) -> Iterator[Entry]:
        """Yield the entries with their artifacts or their problems, without what is gone by now."""
        keys = self._keys()
        for entry in entries:
            try:
                if artifact := self._load(entry.key, content, keys):
                    yield replace(entry, artifact=artifact, problem=None)
            except AccelError as error:
                foreign = isinstance(error, ForeignArtifact)
                yield replace(entry, problem=str(error), foreign=foreign)

    def _scan(self) -> builtins.list[Entry]:
        with os_errors(f"list the store {self.root}"):
            return folders.scan(self.root)

    def _publish(self, draft: Path, key: str) -> Artifact:
        """Make `draft` visible. A good artifact that is there wins, a damaged one is replaced."""
        final = self._path(key)
        for _ in range(10):
            if (ours := folders.appear(draft, final)) is not None:
                return ours
            try:
                if (theirs := self.get(key)) and not folders.supersedes(draft, theirs):
                    return theirs
                self.discard(key, "replaced by one that was checked")
            except ForeignArtifact:  # who asked for the new one has said it, once for all units
                cleanup.remove(self.root, final)
            except ArtifactRejected as error:
                self.discard(key, f"replaced by a new one: {error}")
        raise StoreError(
            f"Artifact {key[:12]} was put and removed by others again and again. "
            f"Expected the store {self.root} to be quiet. Try again."
        )
