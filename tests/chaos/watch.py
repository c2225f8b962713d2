"""What the campaign itself hears and does past the links, in threads that end with it."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

from celery import Celery
from celery.states import READY_STATES
from redis.exceptions import RedisError

from redis_batches.testing.server import HOST
from tests.chaos.ledger import Log, Outcome
from tests.chaos.places import Place
from tests.chaos.tasks import PLAIN_QUEUE

#: Seconds until a server that is down is tried again.
PAUSE = 0.05
_PREFIX = "celery-task-meta-"
#: Where a call is while it runs.
_DOING = f"{PLAIN_QUEUE}.doing"


class Watch:
    """Hears every state that is told, by the messages with which the result backend tells it.

    Args:
        backend: The result backend.

    Attributes:
        told: The different final states of each call, by its id, each with the Unix time at which
            it was told last.
    """

    def __init__(self, backend: Place) -> None:
        self.told: dict[str, list[tuple[Outcome, float]]] = {}
        self._backend = backend
        self._stopped = Event()
        self._thread = _started(self._listen, self._stopped)

    def stop(self) -> None:
        """Listens no more."""
        self._stopped.set()
        self._thread.join()

    def hear(self, task_id: str, meta: bytes) -> None:
        """Notes a state that was told."""
        outcome, now = read_meta(meta), time.time()
        if outcome[0] in READY_STATES:
            others = [each for each in self.told.get(task_id, ()) if each[0] != outcome]
            self.told[task_id] = [*others, (outcome, now)]

    def _listen(self) -> None:
        with self._backend.client.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.psubscribe(f"{_PREFIX}*")
            while not self._stopped.is_set():
                message = pubsub.get_message(timeout=0.5)
                if message is not None:
                    self.hear(message["channel"].decode().removeprefix(_PREFIX), message["data"])


class PlainWorker:
    """Runs the calls of the task that is no batch task, once each.

    Celery's own workers lose what they fetch from a Redis broker while a connection is cut, so
    they could not show whether a chord's body was sent.

    Args:
        broker: The broker.
        backend: The result backend.
    """

    def __init__(self, broker: Place, backend: Place) -> None:
        self._broker = broker
        url = f"redis://{HOST}:{backend.server.port}/0"
        self._results: Any = Celery(backend=url, set_as_current=False).backend
        self._log = Log("notes")
        self._stopped = Event()
        self._thread = _started(self._work, self._stopped)

    def stop(self) -> None:
        """Runs no more."""
        self._stopped.set()
        self._thread.join()

    def is_idle(self) -> bool:
        """Whether no call waits or runs."""
        return not self._broker.client.exists(PLAIN_QUEUE, _DOING)

    def _work(self) -> None:
        client = self._broker.client
        while not self._stopped.is_set():
            if client.llen(_DOING) or client.blmove(PLAIN_QUEUE, _DOING, 0.5, "RIGHT", "LEFT"):
                self._run(client.lindex(_DOING, 0))
                client.lpop(_DOING)

    def _run(self, message: bytes) -> None:
        found = json.loads(message)
        args, kwargs, _ = json.loads(b64decode(found["body"]))
        self._results.mark_as_done(found["headers"]["id"], args[0])
        self._log.write([{"call": kwargs["call"], "at": time.time()}])


def read_meta(meta: bytes) -> Outcome:
    """Returns a stored state in the form in which outcomes are compared."""
    found = json.loads(meta)
    state, result = found["status"], found["result"]
    if state in ("FAILURE", "RETRY"):
        return state, result["exc_type"]
    return state, None if state == "REVOKED" else result


def _started(work: Callable[[], None], stopped: Event) -> Thread:
    """Starts a thread that goes on, whatever is done to its servers, until it is stopped."""

    def go_on() -> None:
        while not stopped.is_set():
            try:
                work()
            except (RedisError, OSError):
                stopped.wait(PAUSE)

    thread = Thread(target=go_on, daemon=True)
    thread.start()
    return thread
