"""Options that only a broker's message has: refused where a caller would miss them, else left out.

Celery hands what it does not know to the broker's message. A call waits in Redis instead, so what
only a message has is refused here rather than lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis_batches.core.errors import OptionError

#: What `send_task` passes to a producer and no request keeps: it belongs to the broker's message.
OF_THE_MESSAGE = {
    *("declare", "delivery_mode", "retry", "retry_policy", "timeout", "confirm_timeout"),
    *("expiration", "mandatory", "immediate"),
}
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


def check_routed(options: Mapping[str, Any]) -> None:
    """Refuses what only a broker's message has, given by a call, a route or the task.

    Raises:
        OptionError: It names the option and what to do instead.
    """
    for name, allowed in _REFUSED.items():
        if options.get(name):
            raise OptionError(name, options[name], allowed)
