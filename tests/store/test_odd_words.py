"""Words of a signed manifest that no version writes: they reach no terminal, page or arithmetic."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lib_accel.errors import AccelError, ArtifactRejected, StoreError
from lib_accel.store import groups, signing
from lib_accel.store.manifest import recipe_key, write_manifest
from lib_accel.tools.cli import main
from tests.store.kit import recipe

LINES = "forged\nAcceleration: all is well\x1b[31m<img src=x>"
HUGE = 10**400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recipe", {**recipe("a"), "backend": ["kernels"]}),
        ("recipe", {**recipe("a"), "backend": LINES}),
        ("recipe", {**recipe("a"), "source": {"a": 1}}),
        ("recipe", {**recipe("a"), LINES: "x"}),
        ("recipe", {**recipe("a"), "unit": {"layer": "x", LINES: 1}}),
        ("recipe", {**recipe("a"), "machine": {**recipe("a")["machine"], LINES: None}}),
        ("made_with", {"cpu": 5}),
        ("made_with", {"cpu": True}),
        ("made_with", {LINES: "x86-64-v3"}),
        ("verdict", {"compiled": [HUGE], "eager": [HUGE]}),
        ("verdict", {"compiled": [float("nan")], "eager": [1.0]}),
        ("verdict", {"compiled": [1.0], "eager": [float("inf")]}),
        ("verdict", {LINES: [1.0]}),
    ],
    ids=lambda value: value if isinstance(value, str) else ascii(value)[-40:],
)
def test_what_no_version_writes_is_refused_whoever_has_signed_it(
    store, units, capsys, field: str, value: Any
):
    artifact = store.put(recipe("a"), units)
    manifest = {**json.loads(json.dumps(artifact.manifest)), field: value}
    manifest["key"] = recipe_key(manifest["recipe"])
    folder = artifact.path.rename(store.root / manifest["key"])
    own = signing.store_key(None)
    assert own is not None
    write_manifest(folder, manifest, own)
    with pytest.raises(ArtifactRejected, match=f"missing or wrong: .*{field}"):
        store.get(manifest["key"])
    assert len(groups(store.list())) == 1
    for more in ([], ["--json"]):
        assert main(["store", "list", "--store", str(store.root), *more]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\nAcceleration" not in said
    if field == "recipe":
        with pytest.raises(StoreError, match="cannot be right"):
            store.put(manifest["recipe"], units)


def test_a_sentence_stays_short_and_shows_no_control_characters():
    """A reason goes to consoles, logs, pages, metrics and JSON; not all can hold any character."""
    error = AccelError("half a character \udcff, a colour \x1b[31m, " + "x" * 10**6)
    assert "\\udcff" in str(error)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 3000
    error = ArtifactRejected("two\nlines \x07", "key")
    assert (str(error), error.key) == ("two\nlines \\x07", "key")
