"""Code from a shared store: fetched before anything is compiled, done without where it fails."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from lib_accel.compile.backends.fetching import FetchJob, missing
from lib_accel.compile.session import Session
from lib_accel.config import Config, places
from lib_accel.errors import CompileFailed
from lib_accel.runtime.provider import Provider
from lib_accel.store import ArtifactStore, PublicKeys, artifact
from lib_accel.store.exchange.shared import SharedStore, store_of

from . import tiny
from .store.servers import fleet_key, no_answer, published, send, shared, web_server
from .threads import one_thread  # noqa: F401  (a fixture)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return published(tmp_path)


def config(folder: Path, url: str, **changes: object) -> Config:
    key = fleet_key(folder)
    given = {"store": folder / "own", "remote": url, "store_key": key, **changes}
    return Config(**given)  # type: ignore[arg-type]


def job_of(there: Path, url: str, limit_s: float = 20) -> FetchJob:
    store, target = shared(there.parent / "own", url, fleet_key(there.parent)), tiny.target()
    return FetchJob(target, store, missing(store, target.keys.values()), limit_s)


def fetching_ends(provider: Provider) -> None:
    """Wait for the job of `provider`; a quick one has ended before it could be looked at."""
    if provider.job is not None:
        assert provider.job.wait(10)


def test_all_that_is_missing_is_fetched_at_once(there: Path):
    with web_server(there) as url:
        job = job_of(there, url)
        job.start()
        assert job.result() == {}
    assert (job.fetched, job.problem, job.progress().stage) == (5, None, "done")
    assert len(ArtifactStore(there.parent / "own", key_file=fleet_key(there.parent)).list()) == 5
    assert job_of(there, url)._keys == []


def test_the_folder_is_looked_at_once_for_all_that_is_fetched(there: Path, monkeypatch):
    """It may hold a thousand artifacts."""
    looks: list[Path] = []
    scan = artifact.scan
    monkeypatch.setattr(artifact, "scan", lambda root: looks.append(root) or scan(root))
    job = job_of(there, there.as_uri())
    job._store.max_bytes = 2000
    job.start()
    assert job.result() == {}
    assert (job.fetched, len(looks)) == (5, 1)
    assert len(job._store.list()) == 5, "none that was asked for goes"


def test_what_is_not_there_is_no_problem(there: Path):
    absent = next(there.iterdir())
    absent.unlink()
    job = job_of(there, there.as_uri())
    job.start()
    assert job.result() == {}
    assert (job.fetched, job.problem) == (4, None)


def test_a_server_that_does_not_answer_is_waited_for_so_long_and_no_longer(there: Path, caplog):
    with web_server(there, no_answer) as url:
        job, began = job_of(there, url, limit_s=0.3), time.monotonic()
        job.start()
        assert job.result() == {}
    assert time.monotonic() - began < 2, "it would answer after that"
    assert job.problem == f"{url} did not answer within 0 s"
    assert caplog.text.count("did not answer") == 1


def test_fetching_is_cancelled_at_once(there: Path):
    with web_server(there, no_answer) as url:
        job, began = job_of(there, url), time.monotonic()
        job.start()
        job.cancel()
        with pytest.raises(CompileFailed, match="cancelled"):
            job.result()
    assert time.monotonic() - began < 2


def test_a_store_that_is_gone_is_named_in_the_reason_and_asked_again(
    packaging: None, there: Path, monkeypatch
):
    """Where nothing may be compiled: later, when it is back, its code is taken."""
    given = config(there.parent, there.as_uri(), compile=False, backend="aoti")
    there.rename(there.parent / "away")
    session = Session()
    provider = Provider(given, session)
    provider.prepare(tiny.target())
    fetching_ends(provider)
    provider.collect()
    assert provider.job is None
    assert "Could not read the store file:///" in str(provider.reason)
    assert "compiled units are missing" in str(provider.reason)
    assert not provider.finished
    (there.parent / "away").rename(there)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert provider.finished
    provider.collect()
    fetching_ends(provider)
    assert session.fetched().hits == 5


def test_models_of_one_kind_share_what_is_fetched(packaging: None, there: Path):
    with web_server(there, no_answer) as url:
        session, given = Session(), config(there.parent, url)
        store = store_of(given)
        first = session.fetch(tiny.target(), store, given)
        assert first is not None
        assert session.fetch(tiny.target(), store_of(given), given) is first
        assert session.cancel(given)
        assert first.wait(10)
    assert list(session.failures(tiny.target(), given)) == ["aoti"]
    session.forget_failures()
    again = session.fetch(tiny.target(), store, given)
    assert again is not first
    assert again is not None
    again.cancel()


def test_a_model_that_goes_does_not_keep_the_next_one_from_fetching(packaging: None, there: Path):
    """Changed settings end the job of the network that they were changed for."""
    with web_server(there, no_answer) as url:
        session, given = Session(), config(there.parent, url)
        providers = [Provider(given, session) for _ in range(2)]
        for provider in providers:
            provider.prepare(tiny.target())
            assert isinstance(provider.job, FetchJob)
            provider.close(keep_compiling=False)


def test_nothing_is_fetched_without_a_shared_store_or_for_a_backend_that_keeps_none(there: Path):
    given = config(there.parent, "")
    assert Session().fetch(tiny.target(), store_of(given), given) is None
    given = config(there.parent, there.as_uri(), backend="jit")
    assert Session().fetch(tiny.target(), store_of(given), given) is None


def test_a_server_without_a_compiler_serves_what_it_fetched(tiny_store: Path, tmp_path: Path):
    """From its first image on, with nothing compiled; then its own folder is enough."""
    (tmp_path / "there").mkdir()
    url, key = (tmp_path / "there").as_uri(), fleet_key(tmp_path)
    archive = tmp_path / "all.zip"
    keys = list(tiny.target().keys.values())
    ArtifactStore(tiny_store).export(keys, archive, bytes(32))
    builder = shared(tmp_path / "builder", url, key)
    builder.import_(archive, bytes(32))
    assert all(builder.publish(each) for each in keys)
    flags = {"compile": False, "backend": "aoti", "store_key": key}
    waiting = tiny.engine(tmp_path / "a", remote=url, blocking=True, **flags)
    waiting.prepare()
    assert waiting.status.state == "ready", waiting.status.reason
    asked = threading.Event()

    def when_asked(request: BaseHTTPRequestHandler, data: bytes) -> None:
        assert asked.wait(10)
        send(request, data)

    with web_server(tmp_path / "there", when_asked) as slow:
        engine = tiny.engine(tmp_path / "b", remote=slow, **flags)
        engine.prepare()
        assert engine.status.state == "compiling"
        assert engine.status.progress is not None
        asked.set()
        assert engine.job is not None
        assert engine.job.wait(10)
        assert engine.take_up()
    assert (engine.status.state, engine.counters.compiles) == ("ready", 0), engine.status.reason
    offline = tiny.engine(tmp_path / "b", remote="file:///no/such/folder", **flags)
    offline.prepare()
    assert offline.status.state == "ready"


@pytest.mark.parametrize(
    ("given", "variable", "folder", "url"),
    [
        ("/a", None, "/a", ""),
        ("s3://b/c", None, None, "s3://b/c"),
        ("s3://b/c", "/a", "/a", "s3://b/c"),
        ("/a", "https://b", "/a", "https://b"),
        (None, "https://b", None, "https://b"),
        ("C:\\a", None, "C:\\a", ""),
    ],
)
def test_a_url_leaves_the_folder_to_be_the_cache(monkeypatch, given, variable, folder, url):
    monkeypatch.delenv("ACCEL_STORE", raising=False)
    default = places()[0]
    if variable:
        monkeypatch.setenv("ACCEL_STORE", variable)
    assert places(given) == (Path(folder) if folder else default, url)
    if given is None:
        assert Config().remote == url


def test_a_read_only_url_is_a_cache_that_publishes_nothing(there: Path):
    store = store_of(config(there.parent, there.as_uri(), store_readonly=True))
    assert isinstance(store, SharedStore)
    assert (store.readonly, store.publishes) == (False, False)
    keys = PublicKeys(signer=there.parent / "x")
    assert shared(there.parent / "x", "https://h/a", None, public=keys).publishes is False
