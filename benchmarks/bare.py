"""The limit of calls: the same bytes, sent by a bare redis-py client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from redis.connection import AbstractConnection


class BareCalls:
    """The EVALSHA commands that some calls sent, to be sent again by nobody but redis-py.

    Args:
        url: The server that the calls go to. What they store is removed, so that the commands
            find the same state as the calls did.
        make_calls: Makes the calls.

    Attributes:
        count: How many commands there were.
    """

    def __init__(self, url: str, make_calls: Callable[[], None]) -> None:
        self._client = redis.Redis.from_url(url)
        self._client.ping()
        self._commands = _record(make_calls)
        self.count = len(self._commands)
        for key in self._client.scan_iter("rb:*"):
            self._client.unlink(key)

    def send(self, count: int) -> None:
        """Sends the next commands, each once.

        Raises:
            RuntimeError: The last one stored nothing new.
        """
        commands, self._commands = self._commands[:count], self._commands[count:]
        reply: Any = None
        for sha, number_of_keys, *rest in commands:
            reply = self._client.evalsha(sha, number_of_keys, *rest)
        # The words of its requests, one behind the other.
        if len(commands) != count or not reply[-1].endswith(b"new"):
            raise RuntimeError(f"{len(commands)} of {count} commands, the last reply is {reply!r}")


def _record(make_calls: Callable[[], None]) -> list[tuple[Any, ...]]:
    """Returns the arguments of every EVALSHA that is sent meanwhile."""
    send: Any = AbstractConnection.send_packed_command
    found: list[tuple[Any, ...]] = []

    def send_noted(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        verb, *arguments = _unpack(command)
        if verb == b"EVALSHA":
            found.append(tuple(arguments))
        send(self, command, *args, **kwargs)

    AbstractConnection.send_packed_command = send_noted  # type: ignore[method-assign]
    try:
        make_calls()
    finally:
        AbstractConnection.send_packed_command = send  # type: ignore[method-assign]
    return found


def _unpack(command: Any) -> list[bytes]:
    r"""Returns the arguments of the first of some packed commands, `*2\r\n$3\r\nGET\r\n...`."""
    data = b"".join([command] if isinstance(command, bytes) else command)
    end = data.index(b"\r\n")
    count, start = int(data[1:end]), end + 2
    arguments = []
    for _ in range(count):
        end = data.index(b"\r\n", start)
        begin, length = end + 2, int(data[start + 1 : end])
        arguments.append(data[begin : begin + length])
        start = begin + length + 2
    return arguments
