"""The event that a call was sent, for monitors."""

from __future__ import annotations

from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger

logger = get_logger(__name__)


class SentEvents:
    """Sends the task-sent event of a pushed call to the broker, where monitors listen."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def publish(self, kind: str, fields: dict[str, Any], _: Any, **options: Any) -> None:
        """Publishes as Celery's dispatcher does; the call is stored, so no error leaves."""
        try:
            with self._app.producer_or_acquire() as producer:
                self._app.amqp._event_dispatcher.publish(kind, fields, producer, **options)
        except SoftTimeLimitExceeded:
            raise
        except Exception as exc:
            logger.warning("cannot send the event %s: %r", kind, exc)
