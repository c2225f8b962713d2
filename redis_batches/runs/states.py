"""Stores the states of calls together, and only while their run holds its lease.

Celery's own code decides what is stored: its `store_result` runs for each call, on a twin of the
backend whose client answers from what one MGET found, and only notes what it shall write. Then one
script writes all of it. What runs for the first time has no state as a rule, so none is read then.

A run may be paused between any two of its steps, and another one may tell its calls meanwhile. So
the script writes only over what was read, and the lease is confirmed in between: either it was
lost, or nobody else has told anything since, or the script refuses (unless what was told is
forgotten again by then). Other backends than Redis have no such guard: there a state is stored
right after the lease was confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from logging import getLogger
from time import monotonic
from typing import Any, Protocol, TypeVar

from celery.backends.redis import RedisBackend
from kombu.exceptions import OperationalError
from kombu.utils.encoding import bytes_to_str

from redis_batches.driver.guest import GuestScript, ScriptsRefused

logger = getLogger(__name__)

_T = TypeVar("_T")

#: Calls whose states are read and stored together, and bytes after which no more join them.
CHUNK = 500
CHUNK_BYTES = 4_000_000
#: How often a state is read and found to be another one when it is stored.
TRIES = 10
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
    """Raises LeaseLost if a run may tell nothing any more."""

    def __call__(self, *, anew: bool = False) -> None:
        """Asks Redis only if it was not asked a moment ago, or if it is to ask `anew`."""


class Changed(Exception):
    """A state is another one than was read or assumed: nothing was stored."""


def states_of(
    backend: Any, ids: Sequence[str], confirm: Confirm | None = None, *, unread: bool = False
) -> OneByOne | Gathering:
    """Returns what reads and stores the states of calls, together if the backend can do that.

    Args:
        backend: A result backend.
        ids: The calls, at most `CHUNK`.
        confirm: Raises LeaseLost if their run may tell nothing any more.
        unread: Whether to assume that none has a state yet.
    """
    if can_gather(backend):
        return Gathering(backend, ids, confirm, unread=unread)
    return OneByOne(backend, confirm)


def store(
    backend: Any,
    task_id: str,
    result: Any,
    state: str,
    confirm: Confirm | None,
    *,
    unread: bool,
    **more: Any,
) -> None:
    """Stores one state, as `Backend.store_result` does, unless the lease was lost."""

    def try_to(first: bool) -> None:
        found = states_of(backend, [task_id], confirm, unread=unread and first)
        found.note(task_id, result, state, **more)
        found.send()

    again(try_to, confirm)


def again(tell: Callable[[bool], _T], confirm: Confirm | None = None) -> _T:
    """Tells until nobody else told one of the calls between reading and storing its state.

    Args:
        tell: Is told whether this is its first try.
        confirm: Is asked before each other try: whoever told it may be a newer run.

    Raises:
        OperationalError: It never was what was read a moment before.
    """
    for number in range(TRIES):
        if number and confirm is not None:
            confirm(anew=True)
        with suppress(Changed):
            return tell(number == 0)
    raise OperationalError(
        "the state of a call is never what was read a moment before: "
        "does the result backend read from a replica?"
    )


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
        confirm: Raises LeaseLost if their run may tell nothing any more.
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
        self._client = _Client(dict(zip(keys, read, strict=True)))
        self._twin = _twin(backend, self._client)

    @property
    def is_full(self) -> bool:
        """Whether what is noted shall go out before more is."""
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

        A server that refuses scripts is told one by one for a while.

        Raises:
            Changed: One of the states is another one by now; or the server refuses scripts.
            LeaseLost: The run may tell nothing any more.
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


class _Client:
    """Stands in for the backend's Redis client: knows what was read, notes what is written."""

    def __init__(self, read: dict[Any, Any]) -> None:
        self._read = read
        self.noted: dict[Any, tuple[int, Any]] = {}
        self.size = 0

    def get(self, key: Any) -> Any:
        return self._read.get(key)

    def pipeline(self) -> _Pipe:
        return _Pipe(self)


class _Pipe:
    """The commands with which the backend stores one state."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    def __enter__(self) -> _Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set(self, key: Any, value: Any) -> None:
        self.setex(key, 0, value)

    def setex(self, key: Any, expires: int, value: Any) -> None:
        self._client.noted[key] = expires, value
        self._client.size += len(value)

    def publish(self, channel: Any, message: Any) -> None:
        """The script does it: the channel is the key, the message its value."""

    def execute(self) -> None:
        pass


class _Conf:
    """Stands in for the app's settings: each question of the backend is answered once."""

    def __init__(self, conf: Any) -> None:
        self._conf = conf
        self.find_value_for_key = cache(conf.find_value_for_key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conf, name)


class _App:
    """Stands in for the app: the calls of a batch are done at one moment."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.conf = _Conf(app.conf)
        self.now = cache(app.now)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)


def _at_once(write: Any, args: Any, **_: Any) -> Any:
    return write(*args)


def _twin(backend: Any, client: _Client) -> Any:
    # Not `copy.copy`: a backend copies itself by making a new one, with connections of its own.
    twin = object.__new__(type(backend))
    twin.__dict__.update(backend.__dict__)
    # A note is taken at once; only what goes out is tried again.
    twin.__dict__.update(client=client, app=_App(backend.app), ensure=_at_once)
    return twin
