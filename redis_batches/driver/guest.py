"""Runs a script on a client that is not ours: that of a result backend."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from redis_batches.driver.server_errors import word_of
from redis_batches.driver.sources import folder


class ScriptsRefused(Exception):
    """A server runs no scripts, or not for this user; nothing was done."""


class GuestScript:
    """A script that stands alone: it has no prelude, and its keys are another program's.

    Args:
        source: What is sent if the server does not know the script.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._sha = sha1(source.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def load(cls, name: str) -> GuestScript:
        """Returns the script in a file, by its name inside the folder of the scripts."""
        return cls((folder() / name).read_text("utf-8"))

    def __call__(self, client: Any, keys: Sequence[Any], values: Sequence[Any]) -> Any:
        """Runs the script once, and returns its reply as the client gives it.

        Raises:
            ScriptsRefused: The server does not let the client run it.
            redis.exceptions.RedisError: It could not be reached, or refuses for another cause.
        """
        try:
            return self._send(client, keys, values)
        except ResponseError as exc:
            # Any other word is a state of the server that passes, or that everybody meets.
            if word_of(exc) not in (None, "NOPERM"):
                raise
            raise ScriptsRefused(str(exc)) from exc

    def _send(self, client: Any, keys: Sequence[Any], values: Sequence[Any]) -> Any:
        try:
            return client.evalsha(self._sha, len(keys), *keys, *values)
        except NoScriptError:
            return client.eval(self._source, len(keys), *keys, *values)
