"""A program moves from celery-batches to this package while messages wait in its queue."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection

from benchmarks.peer import peer_python
from tests.support.processes import ROOT, Cluster
from tests.support.waiting import wait_until

APP = "tests.integration.apps.migrating"
#: Calls that the old worker had in its memory, and calls that came later.
BUFFERED, QUEUED = 120, 130


@pytest.fixture(scope="session")
def old_python() -> str:
    """The interpreter that has celery-batches."""
    return str(peer_python())


def call(cluster: Cluster, python: str, first: int, count: int) -> list[str]:
    """Calls the task by the old program; returns the ids."""
    done = subprocess.run(
        [python, "-c", f"from {APP} import call; call({first}, {count})"],
        cwd=ROOT,
        env={**os.environ, **cluster.env, "TEST_LIBRARY": "celery_batches"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


def queued(broker: str) -> int:
    """Returns how many messages a broker has not delivered."""
    with Connection(broker) as connection:
        channel = connection.default_channel
        if connection.transport.driver_type == "redis":
            return int(channel.client.llen("celery"))
        return int(channel.queue_declare("celery", passive=True).message_count)


@pytest.mark.timeout(180)
def test_calls_that_wait_for_celery_batches_run_in_our_batches(
    cluster: Cluster, broker: str, old_python: str
) -> None:
    """Each once, whether it waited in the queue or in the memory of the old worker."""
    ids = call(cluster, old_python, 0, BUFFERED)
    ours, cluster.python = cluster.python, old_python
    old = cluster.worker(TEST_LIBRARY="celery_batches", TEST_BUFFERS="1")
    wait_until(lambda: queued(broker) == 0, description="the old worker has all in its memory")
    old.stop()
    ids += call(cluster, old_python, BUFFERED, QUEUED)
    assert not runs(cluster.folder)

    cluster.python = ours
    new = cluster.worker(TEST_LIBRARY="redis_batches")

    caller = Celery("caller", backend=cluster.env["TEST_BACKEND"], set_as_current=False)
    results = [caller.AsyncResult(task_id) for task_id in ids]
    assert [result.get(timeout=60) for result in results] == list(range(BUFFERED + QUEUED))
    sizes = [len(run) for run in runs(cluster.folder)]
    assert sorted(task_id for run in runs(cluster.folder) for task_id, _ in run) == sorted(ids)
    assert max(sizes) == 100
    assert len(sizes) <= 6
    linked = [result.children[0] for result in results[::5]]
    assert [child.get(timeout=20) for child in linked] == [
        number + 1 for number in range(0, BUFFERED + QUEUED, 5)
    ]
    new.stop()
    wait_until(lambda: queued(broker) == 0, description="nothing is left")
    caller.close()


def runs(folder: Path) -> list[Any]:
    """Returns the ids and arguments of each batch that ran."""
    path = folder / "runs"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
