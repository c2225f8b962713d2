"""What a batch does with its requests, and what claims, cancels and sweeps found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from redis_batches.core.triggers import Bells


class Verb(str, Enum):
    """How a batch gives a request back.

    `RETRY_BATCH` is a retry because the batch as a whole failed. What has no outcome is `PUT_BACK`,
    or `POSTPONE` if the cause lies outside the request: a shutdown, an outage, a newer version.
    """

    RETRY = "retry"
    RETRY_BATCH = "retry_batch"
    PUT_BACK = "put_back"
    POSTPONE = "postpone"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request that a batch gives back.

    Attributes:
        id: The task id.
        verb: How.
        delay_ms: Time until it may run again; 0 is at once. It doubles each time that the request
            is put back or postponed.
        error: What went wrong, kept for an operator.
    """

    id: str
    verb: Verb
    delay_ms: int = 0
    error: str = ""


class Place(str, Enum):
    """Where a cancel found a request.

    `LEASED` is leased to the canceller now; `IN_FLIGHT` is in a batch that runs; `DEAD` is a dead
    letter; `GONE` is not stored; `ELSEWHERE` waits in another group.
    """

    LEASED = "leased"
    IN_FLIGHT = "in_flight"
    DEAD = "dead"
    GONE = "gone"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Found:
    """A request that a cancel was asked for.

    Attributes:
        id: The task id.
        place: Where it is.
        group: Id of its group, or "".
    """

    id: str
    place: Place
    group: str


@dataclass(frozen=True, slots=True)
class Idle:
    """A claim that found nothing to run.

    Attributes:
        reason: "busy", "ended", "left", "not_due" or "empty".
        wait_ms: For "not_due", the time until something may be.
    """

    reason: str
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found.

    Attributes:
        wait_ms: Time until something else wants attention, or None.
        bells: Doorbells to ring, one per group.
        expired: Tokens of runs that died, each with the id of its group.
        ready: Ids whose delay is over, by group id.
    """

    wait_ms: int | None
    bells: tuple[Bells, ...] = ()
    expired: tuple[tuple[str, str], ...] = ()
    ready: tuple[tuple[str, tuple[str, ...]], ...] = ()
