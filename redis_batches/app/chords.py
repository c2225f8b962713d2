"""Whether the body of a chord is being sent: its parts have ended, so that is their last chance.

Celery sends it once, from the run of the last part. An error there fails the body with a
`ChordError`, although all its parts did well; so it is sent again for as long as an outcome is told
again, and under a name of its own, so that a second sender sends the same call. That holds for a
body that is a batch task, and for one that goes to the broker. The same holds for what a Redis
result backend is asked meanwhile; and where Celery gives one run the right to send the body, others
wait until that run has used it, or died.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from inspect import signature
from time import monotonic, sleep
from typing import Any, NamedTuple

from celery._state import get_current_task
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from redis_batches.app.backends import WATCHED, is_watched
from redis_batches.driver.server_errors import is_refusal

logger = get_logger(__name__)

#: Seconds for which a body is sent again while the batch store or the broker does not take it.
PATIENCE = 30.0
#: Seconds between two tries.
PAUSE = 0.2
#: The task that sends the body with a result backend that does not count parts.
_UNLOCK = "celery.chord_unlock"


class _Counting(NamedTuple):
    """A part of a chord is counted."""

    group: str
    until: float


_counting: ContextVar[_Counting | None] = ContextVar("redis_batches_counting", default=None)
#: The process and thread that must not wait: a worker's event loop.
_loop: tuple[int, int] | None = None


def never_wait_here() -> None:
    """Says that this thread is an event loop: what it sends is sent once."""
    global _loop
    _loop = (os.getpid(), threading.get_ident())


def watch_chords(backend: Any) -> None:
    """Lets a result backend count the parts of chords, and send their bodies, patiently."""
    backend.on_chord_part_return = _counted(backend, backend.on_chord_part_return)
    # Sent twice, what is counted in another way counts twice.
    if not getattr(backend, "_chord_zset", False):
        return
    make = backend._create_client
    backend._create_client = lambda **params: _patient(backend, make(**params))
    if "client" in vars(backend):
        _patient(backend, backend.client)
    if hasattr(type(backend), "_chord_part_return_script"):
        vars(backend)["_chord_part_return_script"] = _claiming(backend._chord_part_return_script)


def _counted(backend: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """Notes that a part of a chord is counted, for as long as that takes."""
    parameters = signature(original)

    @wraps(original)
    def on_chord_part_return(*args: Any, **kwargs: Any) -> Any:
        _watch_publishing(backend.app.amqp)
        request = parameters.bind(*args, **kwargs).arguments["request"]
        waits = (os.getpid(), threading.get_ident()) != _loop
        found = _Counting(str(request.group), monotonic() + (PATIENCE if waits else 0.0))
        token = _counting.set(found)
        try:
            return original(*args, **kwargs)
        finally:
            _counting.reset(token)

    return on_chord_part_return


def _watch_publishing(amqp: Any) -> None:
    """Lets a body that waits in the broker, as any other task's call, be published patiently."""
    publish = amqp.send_task_message
    if is_watched(publish):
        return

    @wraps(publish)
    def send_task_message(producer: Any, *args: Any, **kwargs: Any) -> Any:
        # What stands in for a producer has the patience of its own store.
        if _counting.get() is None or getattr(producer, "stands_in", False):
            return publish(producer, *args, **kwargs)
        return _again(producer.connection, publish)(producer, *args, **kwargs)

    setattr(send_task_message, WATCHED, True)
    amqp.send_task_message = send_task_message


def group_of_body() -> str | None:
    """Returns the id of the group whose chord's body is sent now, if any is."""
    if (found := _counting.get()) is not None:
        return found.group
    task: Any = get_current_task()
    if task is None or task.name != _UNLOCK:
        return None
    args = task.request.args or ()
    return str(args[0] if args else (task.request.kwargs or {}).get("group_id"))


def deadline() -> float:
    """Returns until when a body is to be sent again, by `time.monotonic`."""
    found = _counting.get()
    return found.until if found is not None else monotonic() + PATIENCE


def _claiming(count: Callable[..., Any]) -> Callable[..., Any]:
    """Waits while another run, which may be dead, has the right to send the body."""

    def count_and_claim(*args: Any, **kwargs: Any) -> Any:
        until = deadline()
        while True:
            ready, more, size, claimed = reply = count(*args, **kwargs)
            is_complete = size and ready == int(size) + int(more or 0)
            if not is_complete or claimed or monotonic() > until:
                return reply
            sleep(PAUSE)

    return count_and_claim


def _patient(backend: Any, client: Any) -> Any:
    """Lets a client of Redis send again what it is asked while a part of a chord is counted."""
    client.execute_command = _again(backend, client.execute_command)
    make = client.pipeline

    def pipeline(*args: Any, **kwargs: Any) -> Any:
        pipe = make(*args, **kwargs)
        execute = pipe.execute

        def execute_again(*args: Any, **kwargs: Any) -> Any:
            commands = [*pipe.command_stack]

            def send() -> Any:
                pipe.command_stack = [*commands]
                return execute(*args, **kwargs)

            return _again(backend, send)()

        pipe.execute = execute_again
        return pipe

    client.pipeline = pipeline
    return client


def _again(server: Any, send: Callable[..., Any]) -> Callable[..., Any]:
    """Sends again while a part of a chord is counted, whatever loses its server or is refused.

    Args:
        server: Has `connection_errors`: a result backend, or kombu's connection to a broker.
        send: Sends something; twice does no harm.
    """
    lost = (*server.connection_errors, OperationalError)

    @wraps(send)
    def patiently(*args: Any, **kwargs: Any) -> Any:
        while True:
            try:
                return send(*args, **kwargs)
            except Exception as exc:
                found = _counting.get()
                late = found is None or monotonic() > found.until
                if late or not (isinstance(exc, lost) or is_refusal(exc)):
                    raise
                logger.warning("a chord goes on as soon as its server answers: %s", exc)
            sleep(PAUSE)

    return patiently
