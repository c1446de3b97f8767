"""Where the vocabulary of a Taiyi checkpoint is found, and what is said where it is not."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lib_accel.errors import AccelError

from ..taiyi_files import write_vocabulary
from .host import ROOT, TREE, in_place

pytest.importorskip("transformers")

SCRIPT = """
import json, sys
from pathlib import Path
from lib_accel.errors import AccelError
from lib_accel.host.taiyi import vocabulary

vocabulary.MODELS = Path(sys.argv[2])
try:
    answer = {"found": str(vocabulary.find_vocabulary(Path(sys.argv[1])))}
except AccelError as e:
    answer = {"refused": str(e)}
print(json.dumps(answer))
"""
REPOSITORY = "IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1"
COMMIT = "0" * 40


class Search:
    """Looks for the vocabulary of `checkpoint` in a process of its own, with an empty cache."""

    def __init__(self, folder: Path):
        self.folder, self.checkpoint = folder, folder / "ckpt" / "a model.ckpt"
        self.extension, self.hub = folder / "extension", folder / "hf" / "hub"
        self.checkpoint.parent.mkdir()
        self.output = ""

    def __call__(self, **environment: str) -> dict[str, str]:
        given = {"HF_HOME": str(self.folder / "hf"), "HF_HUB_OFFLINE": "1", **environment}
        given["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(TREE)))
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(self.checkpoint), str(self.extension)],
            env=os.environ | given,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        self.output, _, answer = done.stdout.rstrip().rpartition("\n")
        return json.loads(answer)

    def cache(self, repository: str = REPOSITORY) -> Path:
        """Put a vocabulary into the cache as huggingface_hub does."""
        folder = self.hub / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        return write_vocabulary(folder / "snapshots" / COMMIT / "tokenizer" / "vocab.txt")


def _module() -> Any:
    return importlib.import_module("lib_accel.host.taiyi.vocabulary")


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path)


@pytest.mark.slow
def test_places_are_searched_in_order(search: Search) -> None:
    places = [
        search.checkpoint.with_name("a model.vocab.txt"),
        search.checkpoint.with_name("vocab.txt"),
        search.extension / "vocab.txt",
    ]
    for place in places:
        write_vocabulary(place)
    for place in [*places, search.cache()]:
        assert search() == {"found": str(place)}
        place.unlink()
    assert "refused" in search()


@pytest.mark.slow
def test_the_cache_may_hold_the_anime_model(search: Search) -> None:
    place = search.cache("IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Anime-Chinese-v0.1")
    assert search() == {"found": str(place)}


@pytest.mark.slow
def test_offline_it_is_said_what_to_put_where(search: Search) -> None:
    refused = search()["refused"]
    for part in (
        "a model.ckpt is not loaded: ",
        f"https://huggingface.co/{REPOSITORY}/resolve/main/tokenizer/vocab.txt",
        str(search.checkpoint.with_name("vocab.txt")),
    ):
        assert part in refused
    assert "\n" not in refused
    assert "vocab.txt could not be fetched: " in search.output


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n", "has 4 lines; Taiyi's vocabulary has 21128"),
        (b"word\n" * 21128, "has 21128 lines; Taiyi's vocabulary has 21128, among them [CLS]"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n" + b"word\n" * 21124, "among them [CLS], [MASK]"),
        ("中文\n".encode("gbk"), "cannot be read"),
        (b"a" * 2**21, "has 2097152 bytes"),
    ],
)
def test_another_file_of_that_name_is_refused(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    place = tmp_path / "vocab.txt"
    place.write_bytes(content)
    with in_place(), pytest.raises(AccelError) as e:
        _module().find_vocabulary(tmp_path / "x.ckpt")
    assert expected in str(e.value)
    assert str(place) in str(e.value)


def test_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    place = write_vocabulary(tmp_path / "vocab.txt")
    place.write_bytes(place.read_bytes().replace(b"\n", b"\r\n"))
    with in_place():
        assert _module().find_vocabulary(tmp_path / "x.ckpt") == place


# -- a hub on this machine


class _Hub(BaseHTTPRequestHandler):
    vocabulary: bytes
    asked: list[str]

    def do_HEAD(self) -> None:
        if "vocab.txt" in self.path:
            self.asked.append(self.command)
        known = self.path == f"/{REPOSITORY}/resolve/main/tokenizer/vocab.txt"
        self.send_response(200 if known else 404)
        body = self.vocabulary if known else b""
        headers = {"ETag": '"1"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    whole = write_vocabulary(tmp_path / "served.txt").read_bytes()
    handler = type("Hub", (_Hub,), {"vocabulary": whole, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
def test_it_is_fetched_once(search: Search, hub: tuple[str, list[str]]) -> None:
    address, asked = hub
    found = search(HF_ENDPOINT=address, HF_HUB_OFFLINE="0")["found"]
    assert Path(found).is_relative_to(search.hub)
    assert "GET" in asked
    asked.clear()
    assert search(HF_ENDPOINT=address, HF_HUB_OFFLINE="0") == {"found": found}
    assert asked == []
