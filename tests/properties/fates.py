"""What a batch function does with its requests: everything that a user may do, odd values included.

A fate is what one call makes happen in one run of it. Before it tells an outcome it notes which
final states the caller may be told for that: so the simulation knows what was wrong.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    WorkerShutdown,
    WorkerTerminate,
)

from redis_batches import SimpleRequest

#: Any failure but the result backend's own.
OWN_FAILURE = "its own failure"
MAX_RETRIES = 2


class Wrong(Exception):
    """What tasks with `autoretry_for` retry."""


class Unlike(Exception):
    """An exception that cannot be pickled, shown or made again."""

    def __init__(self, *, needed: int) -> None:
        super().__init__()
        self.needed = needed

    def __repr__(self) -> str:
        raise ValueError("it cannot be shown")

    def __str__(self) -> str:
        raise ValueError("it cannot be shown")

    def __reduce__(self) -> Any:
        raise ValueError("it cannot be pickled")


class UnlikeWrong(Unlike, Wrong):
    """One that is retried."""


class Abort(BaseException):
    """A class of the user's own."""


class Rude(Exception):
    """An exception that raises another kind when it is shown."""

    def __repr__(self) -> str:
        raise Abort("shown")

    __str__ = __repr__


class Opaque:
    """A result that cannot be serialized."""

    def __reduce__(self) -> Any:
        raise ValueError("it cannot be pickled")

    def __repr__(self) -> str:
        raise ValueError("it cannot be shown")


class Explosive:
    """A result that raises another kind when it is serialized or compared."""

    __hash__ = object.__hash__

    def __json__(self) -> Any:
        raise Abort("serialized")

    def __eq__(self, other: object) -> bool:
        raise Abort("compared")

    def __repr__(self) -> str:
        raise Abort("shown")


@dataclass
class Call:
    """One call, as its caller sees it.

    Attributes:
        serial: Its argument.
        id: Its task id.
        fates: What it makes happen in each of its runs; the last one in all later runs.
        may: The final states, with a result or the name of an exception, that it may be told.
        runs: How often the function was called with it.
        clean: Those of its runs in which nothing went wrong outside.
        claims: The tokens of the runs that claimed it.
        crashes: Claims that may have counted as a crash.
        put_backs: Runs that asked to be run again, without counting as a retry.
        untold: When it ran while the result backend failed.
        moved: Whether it was called again by its own batch: another call has its id since then.
        silent: Whether it may end without any state: the function raised `Ignore`.
        follows: The step before it in its chain, if any.
        covered: What the task retries by itself.
        oddly: Whether that fails, because of the task's options.
        final: The final state that it was told, once it was.
    """

    serial: int
    id: str
    fates: list[str]
    may: set[tuple[str, Any]] = field(default_factory=set)
    accepted: bool = False
    runs: int = 0
    clean: int = 0
    claims: list[str] = field(default_factory=list)
    crashes: int = 0
    put_backs: int = 0
    untold: list[float] = field(default_factory=list)
    moved: bool = False
    silent: bool = False
    follows: Call | None = None
    covered: tuple[type[BaseException], ...] = ()
    oddly: bool = False
    final: tuple[str, Any] | None = None

    @property
    def fate(self) -> str:
        """What it makes happen in the run that begins."""
        return self.fates[min(self.runs, len(self.fates)) - 1]

    @property
    def value(self) -> Any:
        """What it returns, if all goes well."""
        return self.serial * 10

    def may_fail(self, exc: BaseException, *, by_retry: bool = False) -> None:
        """Notes that it may fail with an exception, or with one that says the same."""
        covered = isinstance(exc, self.covered)
        by_retry = by_retry or covered
        if covered and self.oddly:
            self.may_fail_somehow()
        if not by_retry or self.runs > MAX_RETRIES:
            self.may.add(("FAILURE", type(exc).__name__))
            if isinstance(exc, (Unlike, Rude)):
                self.may.add(("FAILURE", OWN_FAILURE))

    def may_fail_somehow(self) -> None:
        """Notes that it may fail with any exception that says why."""
        self.may.add(("FAILURE", OWN_FAILURE))

    def may_succeed(self, value: Any) -> None:
        """Notes that it may succeed."""
        if isinstance(value, (Opaque, Explosive)):
            self.may_fail_somehow()
        else:
            self.may.add(("SUCCESS", value))


ODD_SECONDS: tuple[Any, ...] = (
    *(timedelta(seconds=5), "5", float("inf"), float("nan"), -5, 1e300, 10**400, object(), True),
    *(0, 7, 0.5, None),
)
ODD_WHEN: tuple[Any, ...] = (*ODD_SECONDS, datetime(2027, 1, 15), datetime.now(timezone.utc))

#: What a function raises, by the name of the fate.
RAISED: dict[str, Callable[[], BaseException]] = {
    "raise": lambda: ValueError("all"),
    "raise covered": lambda: Wrong("all"),
    "raise unlike": lambda: Unlike(needed=1),
    "raise unlike covered": lambda: UnlikeWrong(needed=1),
    "raise rude": Rude,
    "raise soft limit": lambda: SoftTimeLimitExceeded(1),
    "raise Ignore": Ignore,
    "raise Reject": lambda: Reject("no", requeue=False),
    "raise Reject again": lambda: Reject("later", requeue=True),
    "raise CancelledError": asyncio.CancelledError,
    "raise GeneratorExit": GeneratorExit,
    "raise Abort": lambda: Abort("all"),
    "raise SystemExit": lambda: SystemExit(3),
    "raise KeyboardInterrupt": KeyboardInterrupt,
    "raise WorkerShutdown": lambda: WorkerShutdown(0),
    "raise WorkerTerminate": lambda: WorkerTerminate(1),
}
#: What is given in the place of a result.
PLACED: dict[str, Callable[[], Any]] = {
    "place exception": lambda: ValueError("one"),
    "place covered": lambda: Wrong("one"),
    "place unlike": lambda: Unlike(needed=1),
    "place unlike covered": lambda: UnlikeWrong(needed=1),
    "place rude": Rude,
    "place opaque": Opaque,
    "place explosive": Explosive,
    "place Ignore": Ignore,
    "place Reject": lambda: Reject("no", requeue=False),
    "place Reject again": lambda: Reject("later", requeue=True),
    "place Retry": lambda: Retry(when=1),
}
SETTLED = (
    *("succeed", "succeed opaque", "succeed explosive", "fail", "fail unlike", "fail rude"),
    *("fail covered", "mark done", "mark failure", "mark retry"),
    *("retry", "retry odd", "retry odd", "retry unlike", "call again"),
)
WHOLE = ("retry all", "retry all odd", "raise Retry odd", "wrong length", "wrong type", "killed")
#: After these a run ends, but not the call.
ENDLESS = ("raise WorkerShutdown", "raise WorkerTerminate", "killed", "place Retry")


def draw(rng: random.Random) -> list[str]:
    """Returns what a call makes happen in its runs; most are innocent."""
    fates = [rng.choice((*RAISED, *PLACED, *SETTLED, *WHOLE)) for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.6:
        return ["return"]
    if fates[-1] in ENDLESS or rng.random() < 0.5:
        fates.append("return")
    return fates


def settle(call: Call, request: SimpleRequest, fate: str, rng: random.Random) -> bool:
    """Does what a fate says to one request before the function ends; says if it did anything."""
    backend = request.settler.task.backend if request.settler else None
    name, _, kind = fate.partition(" ")
    odd = {"unlike": Unlike(needed=1), "rude": Rude(), "covered": Wrong("one")}
    exc = odd.get(kind, ValueError("one"))
    if name == "succeed":
        value = {"opaque": Opaque(), "explosive": Explosive()}.get(kind, call.value)
        call.may_succeed(value)
        request.succeed(value)
    elif name == "fail":
        call.may_fail(exc, by_retry=False)
        request.fail(exc)
    elif fate == "mark done":
        call.may_succeed(call.value)
        backend.mark_as_done(request.id, call.value, request=request)
    elif fate == "mark failure":
        # Final, whatever the task retries.
        call.may.add(("FAILURE", type(exc).__name__))
        backend.mark_as_failure(request.id, exc, request=request)
    elif fate == "mark retry":
        call.may_fail(exc, by_retry=True)
        when = rng.choice(ODD_WHEN)
        call.may_fail_somehow()
        backend.mark_as_retry(request.id, Retry(exc=exc, when=when), request=request)
    elif name == "retry" and kind in ("", "odd", "unlike"):
        seconds = rng.choice(ODD_SECONDS) if kind == "odd" else 7
        cause = rng.choice((None, exc))
        call.may_fail(cause or TimeoutError(), by_retry=True)
        if call.runs > MAX_RETRIES or call.oddly:
            call.may_fail_somehow()
        request.retry(countdown=seconds, exc=cause)
    else:
        return False
    return True
