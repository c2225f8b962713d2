"""What the scripts answer, and what Redis holds of a request, as values of `core`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis_batches.core.errors import ScriptReplyError
from redis_batches.core.outcomes import Found, Idle, Place, Swept
from redis_batches.core.requests import Attempts, Claimed, Pushed, Status
from redis_batches.core.triggers import Bells
from redis_batches.driver.scripts import shape
from redis_batches.wire.envelope import text

#: Of a request that has not run before.
NO_ATTEMPTS = Attempts()
_STATUSES = {status.value: status for status in Status}


@dataclass(frozen=True, slots=True)
class Indexed:
    """What became of requests that were to wait again.

    Attributes:
        count: How many they are.
        bells: Doorbells to ring; None: nobody knows where, so they were left as they are.
    """

    count: int
    bells: Bells | None


def read_pushed(reply: Sequence[Any], group: str, route: str, count: int, missing: int) -> Pushed:
    """Returns the answer to a push.

    Args:
        reply: Of `push.lua`.
        group: Id of the group of the requests.
        route: Where to ring for it.
        count: How many requests there were.
        missing: How many of the replicas that were waited for have not told that they have it.

    Raises:
        ScriptReplyError: It is not about so many requests.
    """
    words = reply[0].split()
    if words[:1] != ["pushed"] or len(words) != 3 + count:
        raise ScriptReplyError(f"push answered {shape(words)}, which no script does")
    _, signals, now_ms, *statuses = words
    bells = Bells(group, route, int(signals), int(now_ms))
    return Pushed(bells, tuple([_STATUSES[status] for status in statuses]), missing)


def read_idle(word: str, reply: Sequence[Any]) -> Idle:
    """Returns why a claim found nothing to run."""
    return Idle(word, int(reply[0]) if word == "not_due" else 0)


def read_found(places: Sequence[bytes]) -> tuple[Found, ...]:
    """Returns where a cancel found requests: id, place and group of each."""
    return tuple(
        Found(text(places[i]), Place(text(places[i + 1])), text(places[i + 2]))
        for i in range(0, len(places), 3)
    )


def read_swept(reply: Sequence[Any]) -> Swept:
    """Returns what a sweep found."""
    _, wait, due, expired, members, now_ms = reply
    ready: dict[str, list[str]] = {}
    for member in members:
        group, _, task_id = text(member).partition(":")
        ready.setdefault(group, []).append(task_id)
    return Swept(
        wait_ms=None if int(wait) < 0 else int(wait),
        bells=tuple(
            Bells(text(group), text(route), 1, int(now_ms))
            for group, route in zip(due[::2], due[1::2], strict=True)
        ),
        expired=tuple(
            (text(token), text(group))
            for token, group in zip(expired[::2], expired[1::2], strict=True)
        ),
        ready=tuple((group, tuple(ids)) for group, ids in ready.items()),
    )


def read_bells(reply: Sequence[Any], group: str) -> Bells:
    """Returns the doorbells of a reply {word, count, signals, route}."""
    return Bells(group, text(reply[3]), reply[2], 0)


def read_indexed(reply: Sequence[Any], group: str) -> Indexed:
    """Returns what became of requests of a group that were to wait again."""
    unrouted = reply[0] == "unrouted"
    return Indexed(int(reply[1]), None if unrouted else read_bells(reply, group))


def read_requests(lengths: bytes, joined: bytes) -> tuple[Claimed, ...]:
    """Returns leased requests of their joined parts: entry, record and value of each."""
    rows = _parted(lengths, joined)
    return tuple(read_request(*rows[i : i + 3]) for i in range(0, len(rows), 3))


def _parted(lengths: bytes, joined: bytes) -> list[bytes]:
    """Returns the strings that a script joined."""
    found, end = [], 0
    for length in map(int, lengths.split()):
        start, end = end, end + length
        found.append(joined[start:end])
    return found


def read_request(entry: bytes, attempts: bytes, value: bytes) -> Claimed:
    """Returns a request of its entry, its record of attempts and its stored value."""
    since_ms, _, _, task_id = entry.decode(errors="replace").split(":", 3)
    envelope = read_envelope(value)
    if not attempts:
        return Claimed(task_id, int(since_ms), NO_ATTEMPTS, envelope)
    tries, crashes, alone, split, lost, tried_ms, revoked, *put_back = map(
        int, attempts.split(b":")
    )
    state = Attempts(tries, crashes, alone, split, bool(lost), tried_ms, bool(revoked), *put_back)
    return Claimed(task_id, int(since_ms), state, envelope)


def read_envelope(value: bytes) -> bytes:
    """Returns the envelope in a stored value."""
    return value.split(b":", 3)[-1]


def read_group(value: bytes) -> str:
    """Returns the id of the group in a stored value."""
    return text(value.partition(b":")[0])
