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
    path = Path(os.environ["TEST_FOLDER"]) / "ledger"
    data = (json.dumps(line) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def ledger() -> list[dict[str, Any]]:
    """Returns what was recorded so far, a line per run."""
    path = Path(os.environ["TEST_FOLDER"]) / "ledger"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
