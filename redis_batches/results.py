"""Stores the results of a batch in two round trips, where the result backend is Redis.

Celery's own code decides what is stored: its `store_result` runs for each call, on a twin of the
backend whose client answers from what one MGET found, and only notes what it shall write. Then all
of it goes out in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from celery.backends.redis import RedisBackend

#: Calls whose states are read and stored together, and bytes after which no more join them.
CHUNK = 500
CHUNK_BYTES = 4_000_000


def can_gather(backend: Any) -> bool:
    """Whether states can be stored together; one by one is what works with any other backend."""
    # With result_backend_always_retry Celery retries inside `store_result`, per call.
    return type(backend) is RedisBackend and not getattr(backend, "always_retry", True)


def reader(backend: Any, ids: Sequence[str]) -> OneByOne | Gathering:
    """Returns what reads and stores the states of at most `CHUNK` calls, together if it can be."""
    return Gathering(backend, ids) if can_gather(backend) else OneByOne(backend)


class OneByOne:
    """Reads and stores the states of calls as any backend can."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def meta(self, task_id: str) -> dict[str, Any]:
        """Returns what is stored for a call."""
        found: dict[str, Any] = self._backend.get_task_meta(task_id, cache=False)
        return found

    def note(self, task_id: str, result: Any, state: str, **more: Any) -> None:
        """Stores a state."""
        self._backend.store_result(task_id, result, state, **more)

    def send(self) -> None:
        """Does nothing: all is stored."""


class Gathering:
    """Reads and stores the states of some calls together.

    Args:
        backend: A result backend that `can_gather`.
        ids: The calls whose states may be read or stored, at most `CHUNK`.
    """

    def __init__(self, backend: Any, ids: Iterable[str]) -> None:
        keys = [backend.get_key_for_task(task_id) for task_id in ids]
        found = backend.mget(keys)
        self._backend = backend
        self._client = _Client(dict(zip(keys, found, strict=True)))
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
        """Stores what was noted, all of it or nothing; tries again as long as Celery would."""
        if self._client.noted:
            self._backend.ensure(self._send, ())
            self._client.noted, self._client.size = [], 0

    def _send(self) -> None:
        with self._backend.client.pipeline() as pipe:
            for command in self._client.noted:
                pipe.execute_command(*command)
            pipe.execute()


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
