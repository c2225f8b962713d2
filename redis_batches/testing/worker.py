"""A batch task whose worker is this process: no broker, no server, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fakeredis
import pytest
from celery import Celery
from celery.backends.redis import RedisBackend

from redis_batches import SimpleRequest, batched_task
from redis_batches.app import doorbell
from redis_batches.core.model import Bells


class InProcess:
    """A task, the doorbells that were rung for it, and a way to answer them.

    Attributes:
        task: The task.
        bells: Doorbells that nobody has answered, oldest first.
    """

    def __init__(self, task: Any, bells: list[Bells]) -> None:
        self.task = task
        self.bells = bells
        self._answered = 0

    def answer(self, *, force: bool = False, drain_on: bool = False) -> None:
        """Runs the task as a worker does that got the newest doorbell."""
        bells = self.bells.pop()
        self._answered += 1
        marker = {"group": bells.group, "rung_ms": bells.rung_ms, "force": force}
        marker |= {doorbell.DRAIN_ON: drain_on, doorbell.ENFORCED: True}
        self.task.push_request(
            id=f"bell-{self._answered}",
            hostname="worker@here",
            called_directly=False,
            **{doorbell.MARKER: marker},
        )
        try:
            self.task.run()
        finally:
            self.task.pop_request()


@contextmanager
def in_process(
    function: Callable[[list[SimpleRequest]], Any],
    flush_every: int,
    *,
    results: fakeredis.FakeServer | None = None,
    **options: Any,
) -> Iterator[InProcess]:
    """Makes a task of a function; its requests wait in a fake Redis.

    Args:
        function: What runs the batches.
        flush_every: Requests of a full batch.
        results: The fake Redis that is its result backend; by default they are in memory.
        options: Of the task.
    """
    server, rung = fakeredis.FakeServer(), list[Bells]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "redis_batches.app.state.connect", lambda *_: fakeredis.FakeRedis(server=server)
        )
        patch.setattr(doorbell, "_publish", lambda *args: rung.append(args[3]))
        backend = "cache+memory://"
        if results is not None:
            backend = "redis://127.0.0.1:1/1"
            client = fakeredis.FakeRedis(server=results)
            patch.setattr(RedisBackend, "_create_client", lambda *_, **__: client)
            # Nobody waits for results, which needs a connection of its own.
            for name in ("consume_from", "cancel_for"):
                patch.setattr(RedisBackend.ResultConsumer, name, lambda *_: None)
        app = Celery("here", broker="memory://", backend=backend, set_as_current=False)
        # Celery itself would try again for 20 seconds.
        app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 1}}
        app.conf.redis_batches_url = "redis://127.0.0.1:1/0"
        app.conf.redis_batches_max_dead = 1_000_000
        app.conf.result_cache_max = -1
        make = batched_task(flush_every, 10, app=app, name="here", shared=False, **options)
        make(function)
        yield InProcess(app.tasks["here"], rung)
        app.close()
