"""The attacks of attacks.py, in short."""

from __future__ import annotations

import pytest

from tests.store.attacks import ATTACKS


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_withstood(tmp_path, name):
    attack, few, _ = ATTACKS[name]
    assert attack(tmp_path, few, 1) >= few
