"""What a call may be given: Celery's options, checked before anything is sent.

Celery hands what it does not know to the broker's message. A call waits in Redis instead, so an
option that only a message has is refused here rather than lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from typing import Any

from celery.app.defaults import DEFAULTS
from celery.utils.time import maybe_iso8601, maybe_make_aware

from redis_batches.core.errors import OptionError

_PER_BATCH = "set on the task: one limit holds for all calls of a batch"
_NO_MESSAGE = "left out: a call waits in Redis, so no broker message has it"
#: Options of a broker's message that no call can have, and what to do instead.
_REFUSED = {
    "expiration": "left out: `expires` says until when a call may run",
    "timeout": "left out: `redis_batches_deadline` says how long Redis is waited for",
    "confirm_timeout": "left out: `redis_batches_deadline` says how long Redis is waited for",
    "declare": "left out: the queue that a call is routed to is declared",
    "mandatory": _NO_MESSAGE,
    "immediate": _NO_MESSAGE,
    "content_type": "left out: `serializer` says how arguments are written",
    "content_encoding": "left out: `serializer` says how arguments are written",
}
_POLICY = ("max_retries", "interval_start", "interval_step", "interval_max", "errback")
_DEFAULT_POLICY: dict[str, Any] = DEFAULTS["task_publish_retry_policy"]


def check_call(task: Any, options: Mapping[str, Any]) -> None:
    """Refuses options of one call that have no meaning for it, or whose value has none.

    Raises:
        OptionError: It names the option and what is allowed.
    """
    for name in ("time_limit", "soft_time_limit"):
        if options.get(name) not in (None, getattr(task, name)):
            raise OptionError(name, options[name], _PER_BATCH)
    _check_seconds("countdown", options.get("countdown"))
    eta, expires = options.get("eta"), options.get("expires", task.expires)
    if eta and not isinstance(eta, date):
        _check_moment("eta", eta, "a datetime, or its text in ISO 8601")
    if isinstance(expires, (int, float)):
        _check_seconds("expires", expires)
    elif expires is not None and not isinstance(expires, datetime):
        allowed = "a number of seconds, a datetime, or its text in ISO 8601"
        _check_moment("expires", expires, allowed)


def check_routed(options: Mapping[str, Any]) -> None:
    """Refuses what only a broker's message has, given by a call, a route or the task.

    Raises:
        OptionError: It names the option and what to do instead.
    """
    for name, allowed in _REFUSED.items():
        if options.get(name):
            raise OptionError(name, options[name], allowed)


def delay_of(countdown: Any, eta: Any) -> float:
    """Returns the seconds for which a retry waits; 0 if neither of both says a time.

    Args:
        countdown: Seconds, or None.
        eta: A datetime, or its text in ISO 8601, or None; it wins. Without a time zone it is UTC,
            as in Celery.

    Raises:
        OptionError: It is no such thing.
    """
    _check_seconds("countdown", countdown)
    if eta is None:
        return max(float(countdown or 0), 0.0)
    if not isinstance(eta, datetime):
        _check_moment("eta", eta, "a datetime, or its text in ISO 8601")
    parsed: Any = maybe_iso8601(eta)
    moment = maybe_make_aware(parsed, timezone.utc)
    return max((moment - datetime.now(timezone.utc)).total_seconds(), 0.0)


def _check_seconds(name: str, value: Any) -> None:
    if value is None:
        return
    try:
        if not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise OverflowError
        datetime.now() + timedelta(seconds=value)
    except OverflowError as exc:
        raise OptionError(name, value, "a number of seconds") from exc


def _check_moment(name: str, value: Any, allowed: str) -> None:
    try:
        if not isinstance(value, str):
            raise TypeError
        maybe_iso8601(value)
    except (TypeError, ValueError) as exc:
        raise OptionError(name, value, allowed) from exc


@dataclass(frozen=True)
class PublishRetry:
    """How often and when a call that could not be stored is sent again, in kombu's words.

    Attributes:
        max_retries: How often; None: for ever.
        interval_start: Seconds before the first time.
        interval_step: Seconds that each pause is longer than the one before.
        interval_max: Seconds of the longest pause.
        errback: Is called with the error and the pause before each time.
    """

    max_retries: int | None = field(default=_DEFAULT_POLICY["max_retries"])
    interval_start: float = field(default=_DEFAULT_POLICY["interval_start"])
    interval_step: float = field(default=_DEFAULT_POLICY["interval_step"])
    interval_max: float = field(default=_DEFAULT_POLICY["interval_max"])
    errback: Any = None

    @classmethod
    def of(cls, conf: Any, options: Mapping[str, Any]) -> PublishRetry | None:
        """Returns what a call or the app's settings say, or None if they say nothing.

        Args:
            conf: The app's settings: `task_publish_retry` and `task_publish_retry_policy`.
            options: Of the call: `retry` and `retry_policy`.

        Raises:
            OptionError: The policy has a key that is not known here.
        """
        retry = options.get("retry")
        if not (conf.task_publish_retry if retry is None else retry):
            return cls(max_retries=0)
        own = options.get("retry_policy")
        policy = {**conf.task_publish_retry_policy, **(own or {})}
        if not own and policy == _DEFAULT_POLICY:
            return None
        if unknown := policy.keys() - set(_POLICY):
            raise OptionError("retry_policy", policy, f"without {min(unknown)!r}: it has {_POLICY}")
        return cls(**policy)

    def pause(self, retries: int) -> float | None:
        """Returns seconds to wait before the next time, or None to give up.

        Args:
            retries: How often it was sent again before.
        """
        if self.max_retries is not None and retries >= self.max_retries:
            return None
        return float(min(self.interval_start + retries * self.interval_step, self.interval_max))
