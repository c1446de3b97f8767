"""The processes that compile for a job, and the private folder that they work in."""

from __future__ import annotations

import contextlib
import os
import queue
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ....errors import NoRoom
from ....store.privacy import OTHER_TEMP, require_private
from ....store.private_folder import temporary_folder
from ...target import Target
from ..process_tree import remove
from .worker_environment import Elsewhere
from .worker_process import Results, Worker

HEADERS_FROM = 6
"""So many units pay for compiling torch's C++ headers first: on a CPU that takes 11 s of processor
time, and each unit then 2 s less."""


@contextlib.contextmanager
def workers_in_pool(
    target: Target, units: int, most: int, elsewhere: Elsewhere
) -> Iterator[tuple[list[Worker], Results]]:
    """Start workers for `units`, at the `most` so many; end them and remove their files at the end.

    Raises NoRoom where they cannot write, ArtifactRejected where others could write there.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="accel-compile-", dir=temporary_folder()))
    except OSError as e:
        raise NoRoom(
            f"there is no folder for temporary files: {e}; "
            "expected one that can be written (TMPDIR, TEMP)"
        ) from e
    results: Results = queue.SimpleQueue()
    pool: list[Worker] = []
    count, headers = min(units, most), units >= HEADERS_FROM
    threads = max(1, (os.cpu_count() or 1) // count)
    try:
        # code is tried there before it is stored
        require_private(folder, folder=True, remedy=OTHER_TEMP)
        given = folder, results, threads, target.machine, elsewhere, headers
        pool.extend(Worker(*given) for _ in range(count))
        yield pool, results
    except OSError as e:
        raise NoRoom(
            f"cannot write to {folder}: {e}; expected room for about 1 GB of temporary files"
        ) from e
    finally:
        _clean_up(pool, folder)


def _clean_up(pool: list[Worker], folder: Path) -> None:
    """End the workers and delete their files.

    One worker lives until the files are gone: should this process be killed in the meantime, that
    worker deletes the rest.
    """
    last = next((worker for worker in reversed(pool) if worker.exit_code() is None), None)
    for worker in pool:
        if worker is not last:
            worker.kill()
    if last is not None:
        remove(folder, patience_s=0)
        last.kill()
    remove(folder)
