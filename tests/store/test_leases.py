"""Leases: one machine makes an artifact, the others wait, and its death hands it on."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lib_accel.store.exchange import leases as module
from lib_accel.store.exchange.leases import Leases
from lib_accel.store.exchange.remote import Remote
from tests.store.kit import REPO, key_of, recipe
from tests.store.servers import error_500, fleet_key, s3_server, shared, web_server

KEY = key_of("a")


class Clock:
    """Stands for time.monotonic, and ends every sleep at once."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        time.sleep(0.001)


@pytest.fixture
def remote(tmp_path) -> Remote:
    (tmp_path / "there").mkdir()
    return Remote((tmp_path / "there").as_uri())


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """A clock that the test sets. Nothing is renewed by itself."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(Leases, "_renew", lambda self: None)
    return clock


def renew(holder: Leases, key: str = KEY) -> None:
    held = holder._held[key]
    held.count += 1
    holder._remote.write(held.name, holder._text(held), replace=True)


def test_one_holds_it_and_gives_it_back(remote, clock):
    ours, theirs = Leases(remote), Leases(remote)
    assert ours.take(KEY)
    assert ours.take(KEY), "asked again, it is still ours"
    assert not theirs.take(KEY)
    assert theirs.take(key_of("b"))
    ours.give_back(KEY, published=False)
    assert theirs.take(KEY)
    assert not ours.take(KEY)
    theirs.give_back(KEY, published=True)
    names = [path.name for path in Path(remote._url.removeprefix("file://")).iterdir()]
    assert names == [f"{key_of('b')}.lease.0"], "both of the published one are removed"


def test_a_holder_that_renews_keeps_it_and_a_dead_one_does_not(remote, clock):
    ours, theirs, third = Leases(remote), Leases(remote), Leases(remote)
    assert ours.take(KEY)
    for _ in range(5):
        assert not theirs.take(KEY)
        clock.now += 50
        renew(ours)
    assert not theirs.take(KEY)
    clock.now += 59
    assert not theirs.take(KEY)
    assert not third.take(KEY)
    clock.now += 2
    assert theirs.take(KEY)
    assert not third.take(KEY), "it has just begun to look, and the new holder lives"


def test_clocks_that_differ_or_jump_mean_nothing(remote, clock, monkeypatch):
    """No time is written down: each machine measures by its own clock how long nothing changed."""
    ours, theirs = Leases(remote), Leases(remote)
    assert ours.take(KEY)
    assert not theirs.take(KEY)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not theirs.take(KEY)
    assert b"time" not in (remote.read(f"{KEY}.lease.0") or b"")


def test_a_store_that_fails_lets_everybody_go_on(tmp_path, clock, caplog):
    there = tmp_path / "there"
    there.mkdir()
    (there / f"{KEY}.lease.0").write_bytes(b"somebody")
    (there / f"{key_of('b')}.lease.0").write_bytes(b"somebody")
    with web_server(there, error_500) as url:
        leases = Leases(Remote(url))
        assert leases.take(KEY)
        assert leases.take(key_of("b")), "and it is not asked again at once"
    assert len(caplog.records) == 1


def test_leases_without_end_or_of_any_size_stop_nobody(remote, clock, tmp_path, caplog):
    """As somebody who may write to the store could plant."""
    there = tmp_path / "there"
    for number in range(300):
        (there / f"{KEY}.lease.{number}").write_bytes(b"given back")
    assert Leases(remote).take(KEY)
    assert "has 200 leases" in caplog.text
    (there / f"{key_of('b')}.lease.0").write_bytes(bytes(10**6))
    assert Leases(remote).take(key_of("b"))
    assert "has more than 4096 bytes" in caplog.text


def test_nobody_waits_for_ever(remote, clock):
    ours, theirs = Leases(remote), Leases(remote)
    assert ours.take(KEY)
    for _ in range(60):
        assert not theirs.take(KEY)
        renew(ours)
        clock.now += 30
    clock.now += 1
    assert theirs.take(KEY)


def test_whoever_comes_late_fetches(tmp_path, units):
    """The artifact is published between a look for it and the taking of its lease."""
    (tmp_path / "there").mkdir()
    url, key = (tmp_path / "there").as_uri(), fleet_key(tmp_path)
    maker, late = (shared(tmp_path / name, url, key) for name in ("maker", "late"))
    assert maker.begin(KEY)
    assert not late.begin(KEY)
    maker.put(recipe("a"), units)
    assert maker.settle(10)
    assert not late.begin(KEY)
    assert late.get(KEY) is not None
    assert [path.name for path in (tmp_path / "there").iterdir()] == [f"{KEY}.zip"]


def test_what_was_begun_and_not_made_is_given_back(tmp_path):
    (tmp_path / "there").mkdir()
    url, key = (tmp_path / "there").as_uri(), fleet_key(tmp_path)
    one, two = (shared(tmp_path / name, url, key) for name in ("one", "two"))
    assert one.begin(KEY)
    one.give_back()
    assert two.begin(KEY)
    quiet = shared(tmp_path / "three", url, key, publish=False)
    assert quiet.begin(KEY), "who cannot publish compiles for itself"


def test_an_s3_server_knows_leases(monkeypatch):
    with s3_server(monkeypatch) as url:
        ours, theirs = Leases(Remote(url)), Leases(Remote(url))
        assert ours.take(KEY)
        assert not theirs.take(KEY)
        ours.give_back(KEY, published=False)
        assert theirs.take(KEY)
        theirs.give_back(KEY, published=True)
        assert Remote(url).read(f"{KEY}.lease.0") is None


MACHINE = r"""
import os, pathlib, sys, time
from lib_accel.store.exchange.leases import Leases
from tests.store.kit import key_of, recipe
from tests.store.servers import shared

folder, number = pathlib.Path(sys.argv[1]), sys.argv[2]
store = shared(folder / "machines" / number, (folder / "there").as_uri(), folder / "fleet.key")
store.leases = Leases(store.remote, expiry_s=3, renewal_s=0.2)
code = folder / f"code-{number}"
code.write_bytes(os.urandom(20000))
log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
missing = list("abcd")
while missing:
    for name in list(missing):
        if store.begin(key_of(name)):
            os.write(log, f"{name} {os.getpid()}\n".encode())
            time.sleep(0.3)
            store.put(recipe(name), {"x.so": code})
            store.settle(10)
        if store.get(key_of(name)):
            missing.remove(name)
    time.sleep(0.05)
"""


def test_eight_machines_killed_at_random_make_each_artifact_once(tmp_path):
    """Each is published once, and begun at most once more than its makers were killed."""
    (tmp_path / "there").mkdir()
    (tmp_path / "machines").mkdir()
    (tmp_path / "log").touch()
    fleet_key(tmp_path)

    def start(number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", MACHINE, str(tmp_path), str(number)]
        return subprocess.Popen(command, cwd=REPO)

    machines, killed, dice = [start(number) for number in range(8)], set(), random.Random(3)
    try:
        while len(killed) < 3 and any(machine.poll() is None for machine in machines):
            begun = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
            working = {int(pid) for _, pid in begun} - killed
            alive = [m for m in machines if m.pid in working and m.poll() is None]
            if alive and dice.random() < 0.5:
                victim = dice.choice(alive)
                victim.kill()
                victim.wait()
                killed.add(victim.pid)
                machines.append(start(len(machines)))
            time.sleep(0.1)
        for machine in machines:
            assert machine.wait(60) == (0 if machine.pid not in killed else -9)
    finally:
        for machine in machines:
            machine.kill()
            machine.wait()
    assert killed
    begun = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    makers = {name: [int(pid) for each, pid in begun if each == name] for name in "abcd"}
    for name, pids in makers.items():
        assert len(pids) <= 1 + len(killed & {*pids}), (name, pids, killed)
        assert max(Counter(pids).values()) == 1
    last = shared(tmp_path / "last", (tmp_path / "there").as_uri(), tmp_path / "fleet.key")
    survivors = [n for n, machine in enumerate(machines) if machine.pid not in killed]
    for name in "abcd":
        assert last.fetch(key_of(name)), "whole"
        for number in survivors:
            store = shared(tmp_path / "machines" / str(number), "file:///x", tmp_path / "fleet.key")
            assert store.get(key_of(name)).checksum == last.get(key_of(name)).checksum
