"""How often and when a call that could not be stored is sent again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from celery.app.defaults import DEFAULTS

from redis_batches.core.errors import OptionError

_POLICY = ("max_retries", "interval_start", "interval_step", "interval_max", "errback")
_DEFAULT_POLICY: dict[str, Any] = DEFAULTS["task_publish_retry_policy"]


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
