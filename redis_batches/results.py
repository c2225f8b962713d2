"""Stores the states of calls together, and only while their run holds its lease.

Celery's own code decides what is stored: its `store_result` runs for each call, on a twin of the
backend whose client answers from what one MGET found, and only notes what it shall write. Then all
of it goes out in one transaction.

A run may be paused between any two of its steps, and another one may tell its calls meanwhile. So
the transaction watches what was read, and the lease is confirmed in between: either it was lost, or
nobody else has told anything since, or the transaction fails. Other backends than Redis have no
such guard: there a state is stored right after the lease was confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, TypeAlias, TypeVar

from celery.backends.redis import RedisBackend
from redis.exceptions import WatchError

Confirm: TypeAlias = Callable[[], object]
_T = TypeVar("_T")

#: Calls whose states are read and stored together, and bytes after which no more join them.
CHUNK = 500
CHUNK_BYTES = 4_000_000


def can_gather(backend: Any) -> bool:
    """Whether states can be stored together; one by one is what works with any other backend."""
    # With result_backend_always_retry Celery retries inside `store_result`, per call.
    return type(backend) is RedisBackend and not getattr(backend, "always_retry", True)


class Changed(Exception):
    """Nobody watches any more what was read: nothing was stored, and it is to be read again.

    Somebody else stored a state meanwhile, or the connection was lost.
    """


def states_of(
    backend: Any, ids: Sequence[str], confirm: Confirm | None = None
) -> OneByOne | Gathering:
    """Returns what reads and stores the states of calls, together if the backend can do that.

    Args:
        backend: A result backend.
        ids: The calls, at most `CHUNK`.
        confirm: Raises LeaseLost if their run may tell nothing any more.
    """
    if can_gather(backend):
        return Gathering(backend, ids, confirm)
    return OneByOne(backend, confirm)


def store(
    backend: Any, task_id: str, result: Any, state: str, confirm: Confirm | None, **more: Any
) -> None:
    """Stores one state, as `Backend.store_result` does, unless the lease was lost."""

    def try_to() -> None:
        with states_of(backend, [task_id], confirm) as found:
            found.note(task_id, result, state, **more)
            found.send()

    again(try_to)


def again(tell: Callable[[], _T]) -> _T:
    """Tells until nobody else told one of the calls between reading and storing its state."""
    while True:
        with suppress(Changed):
            return tell()


class OneByOne:
    """Reads and stores the states of calls as any backend can."""

    def __init__(self, backend: Any, confirm: Confirm | None = None) -> None:
        self._backend, self._confirm = backend, confirm

    def __enter__(self) -> OneByOne:
        return self

    def __exit__(self, *_: object) -> None:
        pass

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
    """

    def __init__(self, backend: Any, ids: Iterable[str], confirm: Confirm | None = None) -> None:
        keys = [backend.get_key_for_task(task_id) for task_id in ids]
        self._confirm = confirm
        self._pipe = backend.client.pipeline()
        try:
            if confirm is not None:
                self._pipe.watch(*keys)
                found = self._pipe.mget(keys)
            else:
                found = backend.mget(keys)
        except WatchError as exc:
            # Also what redis-py says of a connection that is lost while it watches.
            self._pipe.reset()
            raise Changed from exc
        except BaseException:
            self._pipe.reset()
            raise
        self._client = _Client(dict(zip(keys, found, strict=True)))
        self._twin = _twin(backend, self._client)

    def __enter__(self) -> Gathering:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.reset()

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
        """Stores what was noted, all of it or nothing, once.

        Raises:
            Changed: One of the states is another one by now.
            LeaseLost: The run may tell nothing any more.
        """
        if self._confirm is not None:
            self._confirm()
            self._pipe.multi()
        for command in self._client.noted:
            self._pipe.execute_command(*command)
        try:
            self._pipe.execute()
        except WatchError as exc:
            raise Changed from exc


class _Client:
    """Stands in for the backend's Redis client: knows what was read, notes what is written."""

    def __init__(self, found: dict[Any, Any]) -> None:
        self._found = found
        self.noted: list[tuple[Any, ...]] = []
        self.size = 0

    def get(self, key: Any) -> Any:
        return self._found[key]

    def pipeline(self) -> _Pipe:
        return _Pipe(self)


class _Pipe:
    """The commands with which the backend stores one state."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._commands: list[tuple[Any, ...]] = []

    def __enter__(self) -> _Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set(self, key: Any, value: Any) -> None:
        self._commands.append(("SET", key, value))

    def setex(self, key: Any, expires: Any, value: Any) -> None:
        self._commands.append(("SETEX", key, expires, value))

    def publish(self, channel: Any, message: Any) -> None:
        self._commands.append(("PUBLISH", channel, message))

    def execute(self) -> None:
        self._client.noted += self._commands
        self._client.size += sum(len(command[-1]) for command in self._commands)


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
