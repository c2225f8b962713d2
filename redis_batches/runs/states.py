"""Stores the states of calls together, and only while their run holds its lease.

Celery's own code decides what is stored; see `redis_batches.runs.recording_backend`. Then one
script writes all of it. What runs for the first time has no state as a rule, so none is read then.

A run may be paused between any two of its steps, and another one may report its calls meanwhile.
So the script writes only over what was read, and the lease is confirmed in between: either it was
lost, or nobody else has stored anything since, or the script refuses (unless what was stored is
forgotten again by then). Other backends than Redis have no such guard: there a state is stored
right after the lease was confirmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from logging import getLogger
from time import monotonic
from typing import Any, NamedTuple, Protocol

from celery.backends.redis import RedisBackend
from kombu.utils.encoding import bytes_to_str

from redis_batches.driver.guest import GuestScript, ScriptsRefused
from redis_batches.runs.recording_backend import RecordingClient, recording

logger = getLogger(__name__)

#: Calls whose states are read and stored together, and bytes after which no more join them.
CHUNK = 500
CHUNK_BYTES = 4_000_000
#: Seconds after which a server that refuses scripts is asked again, and the attribute of a backend
#: that says when.
REFUSAL = 60.0
_ASK_AGAIN = "redis_batches_asks_again"


def can_gather(backend: Any) -> bool:
    """Whether states can be stored together; one by one is what works with any other backend."""
    # With result_backend_always_retry Celery retries inside `store_result`, per call.
    retries = getattr(backend, "always_retry", True)
    refuses = monotonic() < getattr(backend, _ASK_AGAIN, 0.0)
    return type(backend) is RedisBackend and not retries and not refuses


class Confirm(Protocol):
    """Raises LeaseLost if a run may report nothing any more."""

    def __call__(self, *, anew: bool = False) -> None:
        """Asks Redis only if it was not asked a moment ago, or if it is to ask `anew`."""


class Guard(NamedTuple):
    """What one try of storing states must heed.

    Attributes:
        confirm: Raises LeaseLost if the run may report nothing any more.
        first: Whether no other try found that somebody else had stored one of them.
    """

    confirm: Confirm
    first: bool = True


class Changed(Exception):
    """A state is another one than was read or assumed: nothing was stored."""


def states_of(
    backend: Any, ids: Sequence[str], confirm: Confirm | None = None, *, unread: bool = False
) -> OneByOne | Gathering:
    """Returns what reads and stores the states of calls, together if the backend can do that.

    Args:
        backend: A result backend.
        ids: The calls, at most `CHUNK`.
        confirm: Raises LeaseLost if their run may report nothing any more.
        unread: Whether to assume that none has a state yet.
    """
    if can_gather(backend):
        return Gathering(backend, ids, confirm, unread=unread)
    return OneByOne(backend, confirm)


class OneByOne:
    """Reads and stores the states of calls as any backend can."""

    def __init__(self, backend: Any, confirm: Confirm | None = None) -> None:
        self._backend, self._confirm = backend, confirm

    def meta(self, task_id: str) -> dict[str, Any]:
        """Returns what is stored for a call."""
        found: dict[str, Any] = self._backend.get_task_meta(task_id, cache=False)
        return found

    def note(self, task_id: str, result: Any, state: str, **more: Any) -> None:
        """Stores a state."""
        if self._confirm is not None:
            self._confirm()
        self._backend.store_result(task_id, result, state, **more)

    def send(self) -> None:
        """Does nothing: all is stored."""


class Gathering:
    """Reads and stores the states of some calls together.

    Args:
        backend: A result backend that `can_gather`.
        ids: The calls whose states may be read or stored, at most `CHUNK`.
        confirm: Raises LeaseLost if their run may report nothing any more.
        unread: Whether to assume that none has a state yet.
    """

    def __init__(
        self,
        backend: Any,
        ids: Iterable[str],
        confirm: Confirm | None = None,
        *,
        unread: bool = False,
    ) -> None:
        keys = [] if unread else [backend.get_key_for_task(task_id) for task_id in ids]
        read = backend.mget(keys) if keys else []
        self._backend, self._confirm = backend, confirm
        self._client = RecordingClient(dict(zip(keys, read, strict=True)))
        self._twin = recording(backend, self._client)

    @property
    def is_full(self) -> bool:
        """Whether what is noted has to go out before more is."""
        return self._client.size > CHUNK_BYTES

    def meta(self, task_id: str) -> dict[str, Any]:
        """Returns what is stored for a call, as `Backend.get_task_meta` does."""
        found: dict[str, Any] = self._twin.get_task_meta(task_id, cache=False)
        return found

    def note(self, task_id: str, result: Any, state: str, **more: Any) -> None:
        """Notes what `Backend.store_result` writes for a call.

        Raises:
            Exception: The state can never be stored; nothing was noted.
        """
        self._twin.store_result(task_id, result, state, **more)

    def send(self) -> None:
        """Stores what was noted, all of it or nothing.

        A server that refuses scripts gets them one by one for a while.

        Raises:
            Changed: One of the states is another one by now; or the server refuses scripts.
            LeaseLost: The run may report nothing any more.
        """
        if self._confirm is not None:
            self._confirm()
        found = self._client
        if not found.noted:
            return
        rows: list[Any] = []
        for key, (expires, value) in found.noted.items():
            rows += (found.get(key) or b"", expires, value)
        try:
            (word,) = _script()(self._backend.client, [*found.noted], rows)
        except ScriptsRefused as exc:
            logger.warning(
                "the result backend refuses a script, so results are stored one by one, with no "
                "guard against a worker that is paused meanwhile; allow it EVALSHA, EVAL, MGET, "
                "SETEX, SET and PUBLISH: %s",
                exc,
            )
            setattr(self._backend, _ASK_AGAIN, monotonic() + REFUSAL)
            raise Changed from exc
        if bytes_to_str(word) == "changed":
            raise Changed


@cache
def _script() -> GuestScript:
    return GuestScript.load("results/store.lua")
