"""A file in which tasks record each of their runs, and which tests read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from redis_batches import SimpleRequest


def record(requests: list[SimpleRequest], **more: Any) -> None:
    """Appends one line per run of a batch to a file that tests read."""
    batch = requests[0].batch
    line = {
        "ids": [request.id for request in requests],
        "args": [list(request.args) for request in requests],
        "attempts": [request.attempt for request in requests],
        "since": [request.enqueued_at and request.enqueued_at.timestamp() for request in requests],
        "at": time.time(),
        "pid": os.getpid(),
        "fence": batch.fence if batch else None,
        "token": batch.token if batch else None,
        **more,
    }
    note("ledger", line)


def note(name: str, data: Any) -> None:
    """Appends a line of JSON to a file of this name that tests read."""
    path = Path(os.environ["TEST_FOLDER"]) / name
    line = (json.dumps(data) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


def ledger() -> list[dict[str, Any]]:
    """Returns what was recorded so far, a line per run."""
    return noted("ledger")


def noted(name: str) -> list[Any]:
    """Returns what was appended to a file so far."""
    path = Path(os.environ["TEST_FOLDER"]) / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
