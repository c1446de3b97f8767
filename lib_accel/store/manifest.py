"""The manifest of an artifact: what it holds, how it is written, what is refused when read.

    {"format": 2, "key": ..., "recipe": {...}, "files": {name: {"sha256": ..., "bytes": ...}},
     "verdict": {...} or null, "created": ..., "origin": ..., "name": "SD1", "made_with": {...},
     "published": {...}, "signature": ..., "sha256": ...}

`recipe` names all that the compiled code depends on, and `key` is its sha256: `{"unit": {...},
"dtype": "float16", "machine": {"torch": "2.13.0", ...}, ...}`. `verdict` holds what the accuracy
check measured. `name` is the model family that it was made for, to show to users; manifests of
earlier versions lack it. `published`, where it is, was made with a private key for everybody else
(exchange/public_keys.py). `signature` is made with the store key and covers all fields but the last
two; `sha256` covers every other field, so any changed byte is found.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import json
import re
from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import ArtifactRejected, StoreError
from . import files, signing
from .exchange.public_keys import PublicKeys, wrong_signature

FORMAT = 2
MANIFEST = "manifest.json"
BUILT_HERE = "built here"
UNTUNED = ", untuned"
"""At the end of an origin: no choice of the compiler was timed, as no card was there."""

MAX_BYTES, USUAL_BYTES = 1 << 20, 1 << 14
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENTRY = {"sha256", "bytes"}


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """Return the key of the artifact made by `recipe`: the hex sha256 of its canonical JSON."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def new_manifest(
    recipe: Mapping[str, Any],
    verdict: Mapping[str, Any] | None,
    name: str = "",
    made_with: Mapping[str, str | None] | None = None,
    origin: str = BUILT_HERE,
) -> dict[str, Any]:
    """Return the manifest of an artifact made here, without files yet.

    Raises StoreError when the recipe or the verdict is not of the form described above.
    """
    try:
        manifest = json.loads(
            json.dumps(
                {
                    "format": FORMAT,
                    "key": recipe_key(recipe),
                    "recipe": recipe,
                    "verdict": verdict,
                    "origin": origin,
                    "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    "files": {},
                    **({"name": name} if name else {}),
                    **({"made_with": made_with} if made_with else {}),
                }
            )
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"The recipe or the verdict cannot be written as JSON ({error}). "
            "Expected strings, numbers, lists and dicts."
        ) from error
    if wrong := _wrong_fields(manifest):
        raise StoreError(
            f"An artifact cannot be stored: its {' and '.join(wrong)} cannot be right. "
            "Expected a recipe that names unit, dtype and machine, and a verdict of numbers."
        )
    return manifest


class ForeignArtifact(ArtifactRejected):
    """Code that was not put into the store with its key: by somebody else, or an old version."""


def write_manifest(folder: Path, manifest: Mapping[str, Any], store_key: bytes) -> None:
    """Sign the manifest and write it, over an old one, into a folder that nobody reads yet."""
    (folder / MANIFEST).unlink(missing_ok=True)
    with files.create(folder / MANIFEST) as stream:
        stream.write(encode(signed(manifest, store_key)))
        files.flush(stream)


def signed(manifest: Mapping[str, Any], store_key: bytes) -> dict[str, Any]:
    """Return the manifest signed with the store key."""
    return {**manifest, "signature": _signature(manifest, store_key)}


def is_signed(manifest: Mapping[str, Any], store_key: bytes | None) -> bool:
    """Return whether the manifest was signed with the store key."""
    if store_key is None:
        return False
    expected = _signature(manifest, store_key)
    return hmac.compare_digest(manifest.get("signature", "").encode(), expected.encode())


def checksum(manifest: Mapping[str, Any]) -> str:
    """Return the hex sha256 over the names and contents of the files that a manifest lists."""
    return hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()


def require_own(
    path: Path, manifest: Mapping[str, Any], store_key: bytes | None, public: PublicKeys
) -> None:
    """Raise ForeignArtifact unless the artifact `path` may serve: whoever has signed it is trusted.

    That is the owner of the store key, or of one of the `public` keys; neither helps against a
    revocation.
    """
    if withdrawn := public.revoked(manifest, checksum(manifest)):
        raise ForeignArtifact(
            f"{path} must not be used: {withdrawn}. Expected code that is not revoked. It is "
            "compiled again where that is allowed; else import another."
        )
    if is_signed(manifest, store_key):
        return
    why = "its signature was made with another key"
    if not manifest.get("signature"):
        why = "it has no signature"
    if public.trusted:
        name, why = public.signer_of(manifest)
        if name:
            return
    raise ForeignArtifact(
        f"{path} is not signed with your store key: {why}. It is native code that somebody else, "
        "or an earlier version, may have put there. It is compiled again where that is allowed; "
        "else import it, name its key with --accel-store-key or ACCEL_STORE_KEY_FILE, or delete it."
    )


def read_manifest(path: Path, key: str) -> dict[str, Any]:
    """Return the manifest in `path`; raise ArtifactRejected unless it is whole and makes sense."""
    with files.open_file(path) as stream:
        raw = stream.read(MAX_BYTES + 1)
    # a large one is no usual one, and maybe a stranger's
    parse = _parsed if len(raw) <= USUAL_BYTES else _parsed.__wrapped__
    manifest, why = parse(raw, key)
    if why:
        raise damaged(path, why)
    return {**manifest}


@functools.lru_cache(maxsize=4096)  # of the very bytes: nothing else has to be trusted
def _parsed(raw: bytes, key: str) -> tuple[Mapping[str, Any], str | None]:
    """Return what a manifest says, and what is wrong with it or None."""
    manifest: Any = None
    whole = False
    with contextlib.suppress(ValueError, RecursionError):  # refused below
        manifest = json.loads(raw)
        whole = isinstance(manifest, dict) and encode(manifest) == raw
    if not whole:
        return {}, "its own checksum does not match"
    version = manifest.get("format")
    if type(version) is not int or version != FORMAT:
        return {}, f"it has format {version!r}, this version reads {FORMAT}"
    if wrong := _wrong_fields(manifest):
        return {}, f"these fields are missing or wrong: {', '.join(wrong)}"
    if manifest["key"] != key:
        theirs = manifest["key"][:12]
        return {}, f"it belongs to another artifact ({theirs}, expected {key[:12]})"
    if recipe_key(manifest["recipe"]) != key:
        return {}, "its key is not the sha256 of its recipe"
    return manifest, _wrong_files(manifest["files"])


def require_names(names: Collection[str]) -> None:
    """Raise StoreError unless an artifact may hold files of these names."""
    for name in names:
        if not _is_stored_name(name):
            raise StoreError(
                f"{name!r} cannot be a file of an artifact. Expected a relative path of letters, "
                "digits, '.', '_' and '-', as in 'data/unit.so'."
            )
    if not names or files.names_clash(names):
        raise StoreError(
            f"An artifact has no files, or names that differ only in case: "
            f"{sorted(names)}. Expected the files of one compiled unit."
        )


def damaged(path: Path, why: str) -> ArtifactRejected:
    """Return the error for an artifact that is not as it was written."""
    return ArtifactRejected(
        f"{path} is damaged: {why}. Expected it as it was written. "
        "Discard this artifact; it will be compiled again."
    )


def encode(manifest: Mapping[str, Any]) -> bytes:
    """Return the one way this manifest is written, with its `sha256` filled in."""
    body = _without(manifest, "sha256")
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, sort_keys=True, indent=1).encode() + b"\n"


def _signature(manifest: Mapping[str, Any], store_key: bytes) -> str:
    body = _without(manifest, "signature", "sha256")
    return signing.sign(store_key, "artifact", json.dumps(body, sort_keys=True).encode())


def _without(manifest: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name not in names}


def _wrong_fields(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields that are missing or have values of another type."""
    recipe, verdict = manifest.get("recipe"), manifest.get("verdict", False)
    good = {
        "key": _is_text(manifest.get("key")),
        "recipe": isinstance(recipe, dict)
        and _is_text(recipe.get("dtype"))
        and _is_plain(recipe.get("unit"))
        and _is_plain(recipe.get("machine"))
        and _is_plain({**recipe, "unit": None, "machine": None}),
        "files": isinstance(manifest.get("files"), dict),
        "verdict": verdict is None
        or (
            isinstance(verdict, dict)
            and all(map(_is_text, verdict))
            and all(map(_is_measured, verdict.values()))
        ),
        "created": _is_text(manifest.get("created")),
        "origin": _is_text(manifest.get("origin")),
        "signature": _is_text(manifest.get("signature", "")),
        "name": _is_text(manifest.get("name", "")),
        "made_with": _is_plain(manifest.get("made_with", {"": ""}), numbers=False),
        "published": "published" not in manifest or not wrong_signature(manifest["published"]),
    }
    unknown = manifest.keys() - good.keys() - {"format", "sha256"}
    return [*(name for name, fine in good.items() if not fine), *map(repr, sorted(unknown))]


def _is_stored_name(name: str) -> bool:
    """Return whether a file of an artifact may have this name: not the manifest's."""
    return files.is_file_name(name) and name.casefold() != MANIFEST


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_plain(value: object, numbers: bool = True) -> bool:
    """Return whether `value` is a dict, not empty, of texts, nulls and with `numbers` integers."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(map(_is_text, value))
        and all(
            item is None or _is_text(item) or (numbers and isinstance(item, int))
            for item in value.values()
        )
    )


def _is_measured(value: object) -> bool:
    """Return whether `value` is a number or a list of numbers; none that arithmetic cannot take."""
    numbers: list[Any] = value if isinstance(value, list) else [value]
    return all(type(number) in (int, float) and abs(number) < 1e30 for number in numbers)


def _wrong_files(listed: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the list of files, or None."""
    if not listed:
        return "it lists no files"
    for name, entry in listed.items():
        good = (
            _is_stored_name(name)
            and isinstance(entry, dict)
            and entry.keys() == _ENTRY
            and type(entry["bytes"]) is int
            and isinstance(entry["sha256"], str)
            and _SHA256.fullmatch(entry["sha256"])
        )
        if not good:
            return f"its entry for {name!r} is wrong"
    return "its files differ only in case" if files.names_clash(listed) else None
