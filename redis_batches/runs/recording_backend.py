"""A twin of a Redis result backend that records what it is to write, instead of writing it.

Celery's own code decides what is stored for a call: its `store_result` runs on the twin, whose
client answers from what was read before, and only notes what is written. So keys, bytes, expiry
and messages are Celery's in any version.
"""

from __future__ import annotations

from functools import cache
from typing import Any


class RecordingClient:
    """Stands in for the backend's Redis client: knows what was read, notes what is written.

    Args:
        read: What was read, by key; what is not in it has no state.

    Attributes:
        noted: What is to be written, by key: seconds until it expires (0: never), and the value.
        size: Bytes of that.
    """

    def __init__(self, read: dict[Any, Any]) -> None:
        self._read = read
        self.noted: dict[Any, tuple[int, Any]] = {}
        self.size = 0

    def get(self, key: Any) -> Any:
        """Returns what was read."""
        return self._read.get(key)

    def pipeline(self) -> _Pipe:
        """Returns what takes the commands of one state."""
        return _Pipe(self)


class _Pipe:
    """The commands with which the backend stores one state."""

    def __init__(self, client: RecordingClient) -> None:
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


def recording(backend: Any, client: RecordingClient) -> Any:
    """Returns a twin of a backend that reads from a client, and writes into it.

    Args:
        backend: A `celery.backends.redis.RedisBackend`; it is left as it is.
        client: Knows what was read.
    """
    # Not `copy.copy`: a backend copies itself by making a new one, with connections of its own.
    twin = object.__new__(type(backend))
    twin.__dict__.update(backend.__dict__)
    # A note is taken at once; only what goes out is tried again.
    twin.__dict__.update(client=client, app=_App(backend.app), ensure=_at_once)
    return twin
