"""Who vouches for an archive that comes from elsewhere.

One secret for all: a seal over the whole archive, HMAC-SHA256. The one who exports and the one who
imports are then the same operator, who compiles once and seeds a fleet with the result. The
standard library has it: no dependency, no certificate, no key server. But whoever can check it can
also make one, so one stolen key lets a thief run code on every machine of the fleet. It does not
show who made an archive or when, and is withdrawn only by replacing it everywhere.

Or public keys (public_keys.py): each artifact bears the signature of its maker, which no server
that checks it can make.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ArtifactRejected
from .. import signing
from ..manifest import checksum, is_signed
from .public_keys import PublicKeys

SEAL = "seal.json"
MAX_SEAL_BYTES = 4096


def make_seal(signing_key: bytes, digests: Mapping[str, str]) -> str:
    """Return the one seal that fits these members: each one's sha256 by its name."""
    text = json.dumps(dict(digests), sort_keys=True, separators=(",", ":"))
    signature = signing.sign(signing_key, "export", text.encode())
    return json.dumps({"format": 1, "algorithm": "HMAC-SHA256", "signature": signature})


@dataclass(frozen=True)
class Vouching:
    """What may vouch for an archive: the key that sealed it, or the public keys that are trusted.

    `allow_unsigned`: the user does. `store_key` may have signed an artifact of a remote store. What
    is revoked is never taken.
    """

    signing_key: bytes | None
    allow_unsigned: bool
    public: PublicKeys
    store_key: bytes | None = None

    def require_any(self, source: Path | str) -> None:
        """Raise ArtifactRejected where nothing can vouch for any archive."""
        if self.signing_key is None and not (self.allow_unsigned or self.public.trusted):
            raise ArtifactRejected(
                f"{source} was not imported: there is no signing key to check it with. "
                "Give the key, or allow unsigned imports."
            )

    def check_seal(
        self, source: Path | str, digests: Mapping[str, str], seal: bytes | None
    ) -> bool:
        """Return whether the seal was checked; raise ArtifactRejected when it does not fit."""
        if seal is None:
            if self.allow_unsigned or self.public.trusted or self.store_key:
                return False
            raise ArtifactRejected(
                f"{source} was not imported: it is not signed. "
                "Export it with your signing key, or allow unsigned imports."
            )
        if self.signing_key is None:
            return False
        if not hmac.compare_digest(seal, make_seal(self.signing_key, digests).encode()):
            raise ArtifactRejected(
                f"{source} was not imported: its signature does not fit your key. It was signed "
                "with another key, or changed since. Use the key it was exported with, or export "
                "it again."
            )
        return True

    def require(self, source: Path | str, manifest: Mapping[str, Any], sealed: bool) -> str:
        """Return who vouches for one artifact, `sealed` by the key or not.

        Raises ArtifactRejected where nobody does, or where it is revoked.
        """
        if why := self.public.revoked(manifest, checksum(manifest)):
            raise ArtifactRejected(f"{source} was not imported: {why}. Import another.")
        if sealed:
            return "signature checked"
        if is_signed(manifest, self.store_key):
            return "signed with the store key"
        name, why = self.public.signer_of(manifest)
        if name is not None:
            return f"signed by {name}"
        if self.allow_unsigned:
            return "no signature checked"
        raise ArtifactRejected(
            f"{source} was not imported: {why}. Expected code that was signed with a trusted key. "
            "Have it signed, or add the key of its maker to the file of trusted keys."
        )
