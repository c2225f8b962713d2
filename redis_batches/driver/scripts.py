"""The Lua scripts, run by the names in their headers.

A header names every KEYS and ARGV slot, so that a caller passes values by name, and a missing or
unknown one is an error here, not a wrong slot in Lua; `redis_batches.driver.sources` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from hashlib import sha1
from typing import Any, Protocol

import redis
from redis.exceptions import NoScriptError

from redis_batches.core.errors import ScriptReplyError
from redis_batches.driver.client import Client, Packed, drop_connections, send_once
from redis_batches.driver.deadline import left
from redis_batches.driver.patience import patiently
from redis_batches.driver.replication import LEAST, send_and_wait
from redis_batches.driver.server_errors import translated
from redis_batches.driver.sources import join, load_sources, slots_of


class Resolves(Protocol):
    """What knows the keys that a script's header names."""

    def resolve(self, name: str, *, group: str, token: str) -> str:
        """Returns a key by its name in the header."""


class Script:
    """One Lua file with its libraries.

    Attributes:
        name: The verb, which is also the file's name.
        keys: Names of the KEYS, in order.
        args: Names of the ARGV, in order, without a list at the end and `age_ms` before it.
        aged: Whether each attempt to send it tells its age, as `age_ms`.
        rest: Name of the list that takes the ARGV behind these, or None.
        source: What is sent if the server does not know the script.
        sha: By which the server knows it.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        slots = slots_of(source)
        self.keys = tuple(slot.name for slot in slots if slot.kind == "KEYS")
        self.args = tuple(slot.name for slot in slots if slot.kind == "ARGV" and not slot.more)
        self.aged = self.args[-1:] == ("age_ms",)
        if self.aged:
            self.args = self.args[:-1]
        self.rest = next((slot.name for slot in slots if slot.more), None)
        self.source = join(source, load_sources())
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: redis.Redis, keys: Resolves, **values: Any) -> list[Any]:
        """Runs the script; see `BoundScript` for what it returns and raises.

        Args:
            client: A connection to Redis.
            keys: Knows the keys.
            values: One value per ARGV slot, by name.
        """
        rest: Sequence[Any] = values.pop(self.rest, ()) if self.rest else ()
        age = values.pop("age", None)
        return self.bind(keys, **values)(client, rest, age)

    def bind(self, keys: Resolves, **values: Any) -> BoundScript:
        """Returns the script with all its values but the list at the end.

        Args:
            keys: Knows the keys.
            values: One value per ARGV slot, by name.
        """
        group, token = values.get("group", ""), values.get("token", "")
        names = [keys.resolve(name, group=group, token=token) for name in self.keys]
        args = [values.pop(name) for name in self.args]
        if values.keys() - {"group", "token"}:
            raise TypeError(f"{self.name}.lua takes no {', '.join(values)}")
        return BoundScript(self, len(names), [*names, *args])

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of all ARGV, in order, without a list at the end."""
        return (*self.args, "age_ms") if self.aged else self.args


class BoundScript:
    """A script with its keys and values: calls that differ only in the list at the end share it.

    Args:
        script: What is run.
        number_of_keys: How many of the arguments are keys.
        arguments: Keys, then values.
    """

    def __init__(self, script: Script, number_of_keys: int, arguments: Sequence[Any]) -> None:
        self._name, self._source = script.name, script.source
        self._sha, self._number_of_keys, self._aged = script.sha, number_of_keys, script.aged
        self._arguments = tuple(arguments)

    @cached_property
    def _packed(self) -> Packed:
        return Packed((self._sha, self._number_of_keys, *self._arguments))

    def __call__(
        self,
        client: redis.Redis,
        rest: Sequence[Any] = (),
        age: Callable[[], int] | None = None,
    ) -> list[Any]:
        """Runs the script.

        Args:
            client: A connection to Redis.
            rest: The list at the end of ARGV.
            age: Asked before each attempt how many ms ago it was first sent, if it tells that.

        Returns:
            The reply: its first element, the word that says what happened, as text, the others as
            redis-py gives them.

        Raises:
            StoreError: Redis could not be reached, or refused.
            ScriptReplyError: The answer has no script's shape; the connection is dropped.
        """
        with translated(self._name):
            return self._read(client, patiently(client, partial(self._send, client, rest, age)))

    def replicated(
        self,
        client: redis.Redis,
        rest: Sequence[Any],
        replicas: int,
        key: str,
        age: Callable[[], int] | None = None,
    ) -> list[Any]:
        """Runs the script, and waits until replicas have what it wrote, now or before.

        Args:
            client: A connection to Redis.
            rest: The list at the end of ARGV.
            replicas: How many have to have it.
            key: Of a hash with counters, in the slot of the script's keys.
            age: As of a plain call.

        Returns:
            The reply, as of a plain call, and how many replicas are missing when the time is up.
        """

        def ask() -> tuple[Any, int]:
            values = self._aged_values(rest, age)
            arguments = (self._number_of_keys, *self._arguments, *values)
            try:
                by_hash = ("EVALSHA", self._sha, *arguments)
                reply, copies = send_and_wait(client, key, by_hash, replicas)
            except NoScriptError:
                by_text = ("EVAL", self._source, *arguments)
                reply, copies = send_and_wait(client, key, by_text, replicas)
            while copies < replicas and left() > LEAST:
                _, copies = send_and_wait(client, key, (), replicas)
            return reply, copies

        with translated(self._name):
            reply, copies = patiently(client, ask)
            return [*self._read(client, reply), max(replicas - copies, 0)]

    def _read(self, client: redis.Redis, reply: Any) -> list[Any]:
        if not isinstance(reply, list) or not reply or not isinstance(reply[0], bytes):
            drop_connections(client)
            raise ScriptReplyError(f"{self._name} answered {shape(reply)}, which no script does")
        return [reply[0].decode(), *reply[1:]]

    def _send(self, client: redis.Redis, rest: Sequence[Any], age: Callable[[], int] | None) -> Any:
        rest = self._aged_values(rest, age)
        try:
            if type(client) is Client:
                return client.run_packed(self._packed, rest)
            return self._send_unpacked(client, "EVALSHA", self._sha, rest)
        except NoScriptError:
            return self._send_unpacked(client, "EVAL", self._source, rest)

    def _aged_values(self, rest: Sequence[Any], age: Callable[[], int] | None) -> Sequence[Any]:
        """Returns the list at the end of ARGV, and the age of this attempt before it, if told."""
        return (age() if age else 0, *rest) if self._aged else rest

    def _send_unpacked(
        self, client: redis.Redis, command: str, script: str, rest: Sequence[Any]
    ) -> Any:
        arguments = (self._number_of_keys, *self._arguments, *rest)
        return send_once(client, command, script, *arguments)


def shape(reply: Any) -> str:
    """Returns what a reply is, without what is in it: that may be arguments of calls."""
    return f"a list of {len(reply)}" if isinstance(reply, list) else f"a {type(reply).__name__}"


@cache
def load_scripts() -> dict[str, Script]:
    """Returns every script by its name, ready to run."""
    return {
        name: Script(name, source) for name, source in load_sources().items() if "/" not in name
    }
