"""What Redis answers instead of a result: what passes by itself, and what to do about the rest."""

from __future__ import annotations

import re
from typing import Any

from redis import exceptions
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from redis_batches.core.errors import OutOfMemory, StoreError

#: redis-py has taken the word off the message of some.
_CLASSES: dict[str, type[RedisError] | tuple[type[RedisError], ...]] = {
    "READONLY": exceptions.ReadOnlyError,
    "LOADING": exceptions.BusyLoadingError,
    "MASTERDOWN": exceptions.MasterDownError,
    "CLUSTERDOWN": exceptions.ClusterDownError,
    # redis-py's cluster client has tried again by itself, for half a second.
    "TRYAGAIN": (exceptions.TryAgainError, exceptions.ClusterError),
    "OOM": exceptions.OutOfMemoryError,
    "NOPERM": exceptions.NoPermissionError,
    "NOAUTH": exceptions.AuthenticationError,
}
#: A failover, a start, a slow script, a moving slot: over in seconds, so worth waiting for.
TRANSIENT = ("READONLY", "LOADING", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN")
_LOST = (exceptions.ConnectionError, exceptions.TimeoutError, RedisClusterException, OSError)
_ADVICE = {
    "READONLY": "it is a replica: point redis_batches_url to the primary",
    "LOADING": "it is still reading its data from disk",
    "BUSY": "somebody's script blocks it: see SCRIPT KILL",
    "CLUSTERDOWN": "a part of the cluster is missing: see CLUSTER INFO",
    "TRYAGAIN": "the cluster is moving the slot of this task: see CLUSTER NODES",
    "MASTERDOWN": "it is a replica that lost its primary: see INFO replication",
    "OOM": "it is at its maxmemory: raise it, or add workers to drain what waits",
    "NOREPLICAS": "too few replicas are in step: see min-replicas-to-write",
    "MISCONF": "it cannot save its data to disk: see its log, and the free space there",
    "NOPERM": "the ACL of this user lacks a right: docs/operations.md lists all that are needed",
    "NOAUTH": "the user name or password in redis_batches_url is wrong or missing",
    "WRONGTYPE": "one of the task's keys holds something else: another program uses its name",
}
#: The attribute of an error that says which server it is about.
_PLACE = "redis_batches_place"
_WORD = re.compile(rf"\b({'|'.join((*_ADVICE, *TRANSIENT))})\b")


class OutOfTime(RedisError):
    """A call has used up its time.

    It is no lost connection, for which redis-py would look for a cluster's nodes again.
    """


def root_of(exc: BaseException | None) -> BaseException | None:
    """Returns what the last node said that a cluster's client asked, or the error itself."""
    while isinstance(exc, RedisClusterException) and (exc.__cause__ or exc.__context__):
        exc = exc.__cause__ or exc.__context__
    return exc


def word_of(exc: BaseException | None) -> str | None:
    """Returns the word with which Redis named an error, if it is one that this module knows."""
    exc = root_of(exc)
    for word, kind in _CLASSES.items():
        if isinstance(exc, kind):
            return word
    # Redis 6.2 reports what goes wrong inside a script as a plain error that quotes the word.
    found = _WORD.search(str(exc)) if isinstance(exc, ResponseError) else None
    return found[1] if found else None


def name_server(exc: BaseException, place: str) -> None:
    """Notes which server an error is about, for its text."""
    setattr(exc, _PLACE, place)


def is_from_redis(exc: BaseException) -> bool:
    """Tells whether a Redis, or the way to it, is where an error came from."""
    return isinstance(exc, RedisError)


def is_refusal(exc: BaseException) -> bool:
    """Tells whether Redis refused a command for its own state, not for what the command says."""
    return isinstance(exc, RedisError) and word_of(exc) not in (None, "WRONGTYPE")


class translated:  # noqa: N801
    """Turns redis-py's errors inside a `with` block into this package's own, which say what to do.

    Args:
        action: What was asked of Redis, as a verb.
    """

    def __init__(self, action: str) -> None:
        self._action = action

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, exc: BaseException | None, traceback: Any) -> None:
        """Raises the package's own error for one of redis-py's."""
        # redis-py 5 lets a refused connection out as an OSError.
        if isinstance(exc, (RedisError, RedisClusterException, OSError)):
            raise _translation(self._action, exc) from exc


def _translation(action: str, exc: BaseException) -> StoreError:
    word, place = word_of(exc), getattr(exc, _PLACE, None)
    kind = OutOfMemory if word == "OOM" else StoreError
    verb = "refused" if isinstance(root_of(exc), ResponseError) or word else "could not be reached"
    advice = f" ({word}: {_ADVICE[word]})" if word in _ADVICE else ""
    named = f"Redis at {place}" if place else "Redis"
    error = kind(f"{named} {verb} to {action}: {exc}{advice}")
    is_lost = word is None and isinstance(exc, (OutOfTime, *_LOST))
    error.passes_by_itself = word in TRANSIENT or is_lost
    return error
