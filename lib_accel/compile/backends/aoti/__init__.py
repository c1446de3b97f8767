"""The backend `aoti`: units are compiled ahead of time, kept in the store and loaded from there.

`backend.py` decides and loads, `job.py` compiles what is missing in the processes of
`worker_process.py`; a process runs `worker.py`, which compiles with `compiler.py`.
"""
