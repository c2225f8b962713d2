"""What a call or a retry may be given: Celery's options, checked before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime, timedelta, timezone
from typing import Any

from celery.utils.time import maybe_iso8601, maybe_make_aware

from redis_batches.core.errors import OptionError

_PER_BATCH = "set on the task: one limit holds for all calls of a batch"


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
